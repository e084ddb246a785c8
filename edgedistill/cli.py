"""The command line: read options, call one function, print what came of it.

Nothing heavy is imported before a command is called: `--help` needs neither pydantic nor numpy nor any ML library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import rich_click as click

from . import __version__
from .commands.options import (
    json_option,
    llama_cpp_option,
    offline_option,
    recipe_argument,
    run_argument,
    run_options,
    track_option,
)
from .errors import EdgeDistillError
from .stages import STAGES, Stage

__all__ = ["cli"]


class Commands(click.RichGroup):
    """Shows an EdgeDistillError as one line and a hint; lets every other error through."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeDistillError as error:
            if os.environ.get("EDGEDISTILL_DEBUG"):
                raise
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgedistill")
def cli() -> None:
    """Turn a big open-weight model into a small one that answers in 100-500 ms on your own hardware, and prove it."""


@cli.command()
@recipe_argument
@click.option("--from", "redo_from", type=click.Choice([s.name for s in STAGES]), help="Redo this stage and the rest.")
@llama_cpp_option
@track_option
@run_options
def run(recipe: Path, **flags: Any) -> None:
    """Run every stage of RECIPE that is not yet done, and print the verdict."""
    from .commands.run import run_all

    raise SystemExit(run_all(recipe, **flags))


@cli.command()
@recipe_argument
@llama_cpp_option
@run_options
def check(recipe: Path, **flags: Any) -> None:
    """Check, before anything runs, all that RECIPE needs: keys, files, models, licences, memory, disk."""
    from .commands.check import show_check

    show_check(recipe, **flags)


@cli.command()
@recipe_argument
@run_options
def status(recipe: Path, **flags: Any) -> None:
    """Show where each stage of RECIPE stands: missing, partial, done or stale."""
    from .commands.status import show_status

    show_status(recipe, **flags)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Write a recipe of your own, with comments and sample data, into FOLDER."""
    from .commands.init import write_recipe

    write_recipe(folder, as_json)


@cli.command()
@click.argument("model")
@click.option(
    "--format",
    "wanted",
    type=click.Choice(["gguf", "hf"]),
    default="gguf",
    show_default=True,
    help="A GGUF file, or a Hugging Face folder for a student.",
)
@offline_option
@json_option
def fetch(model: str, wanted: str, offline: bool, as_json: bool) -> None:
    """Download MODEL (a catalogue name, org/repo:file.gguf or org/repo), check its hash and print its path."""
    from .commands.fetch import fetch_model

    fetch_model(model, wanted, offline, as_json)


@cli.group()
def adapter() -> None:
    """Work with what was learned: a LoRA or DoRA adapter, apart from the model that it was trained on."""


@adapter.command(name="convert")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["peft", "mlx"]), required=True, help="Whose form OUT shall have.")
@json_option
def convert_one(source: Path, out: Path, to: str, as_json: bool) -> None:
    """Write the adapter in folder IN to folder OUT in the form of PEFT or of mlx-lm, with every bit of its weights."""
    from .commands.adapter import convert

    convert(source, out, to, as_json)


@cli.command()
@run_argument
@json_option
def report(run: Path, as_json: bool) -> None:
    """Print the verdict and the candidates of RUN, and write its report.html."""
    from .commands.report import show_report

    show_report(run, as_json)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--candidates", nargs=2, metavar="A B", help="Which ones: A of the first run, B of the last.")
@click.option("--rows", "quoted", type=click.IntRange(min=0), default=5, show_default=True, help="Quoted of each kind.")
@json_option
def compare(runs: tuple[Path, ...], candidates: tuple[str, str] | None, quoted: int, as_json: bool) -> None:
    """Say what changed from one of two RUNS to the other, or with --candidates in one: fixed, broken, still wrong."""
    from .commands.compare import show_comparison

    show_comparison(runs, candidates, quoted, as_json)


@cli.command()
@run_argument
@click.option("--requests-per-month", type=click.IntRange(min=1), required=True, help="Prompts to answer.")
@click.option("--api-price-in", type=click.FloatRange(min=0), required=True, help="Per million input tokens.")
@click.option("--api-price-out", type=click.FloatRange(min=0), required=True, help="Per million output tokens.")
@click.option("--hardware-cost", type=click.FloatRange(min=0), default=0.0, show_default=True, help="One device's.")
@click.option("--power-watts", type=click.FloatRange(min=0), default=0.0, show_default=True, help="While it computes.")
@click.option("--kwh-price", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Of a kilowatt-hour.")
@json_option
def payoff(run: Path, as_json: bool, **prices: Any) -> None:
    """Say when the student of RUN has paid for itself, from what was measured in it. All prices in one currency."""
    from .commands.payoff import show_payoff

    show_payoff(run, as_json, **prices)


@cli.command(
    help=f"{next(s.help for s in STAGES if s.name == 'evaluate')} TARGET is a recipe; with --eval also a run folder."
)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--eval", "eval_file", type=click.Path(path_type=Path), help="Another eval file; the run is not touched.")
@llama_cpp_option
@run_options
def evaluate(target: Path, eval_file: Path | None, **flags: Any) -> None:
    from .commands.measure import evaluate_target

    evaluate_target(target, eval_file, **flags)


@cli.command(
    help=f"{next(s.help for s in STAGES if s.name == 'bench')} TARGETS: a recipe; or, timed alone and judged, a run, "
    "GGUF files, or the http URL of a server. Ends with 0 where all of these are within the target, else with 4."
)
@click.argument("targets", nargs=-1, required=True)
@click.option("--recipe", type=click.Path(path_type=Path), help="The recipe whose prompts, schema and target are used.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Chat rows to ask instead of a recipe's.")
@click.option("--target", metavar="LOW-HIGH", help="The target in milliseconds, such as 100-500.")
@click.option("--metric", type=click.Choice(["e2e", "ttft"]), help="What the target is for: all, or the first text.")
@click.option("--percentile", type=click.Choice(["50", "90", "95", "99"]), help="Of the metric.")
@click.option("--requests", type=click.IntRange(min=20), help="The most that are timed.")
@click.option("--cache", type=click.Choice(["warm", "cold", "cached-prefix"]), help="What a request finds loaded.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), help="Tokens of every prompt.")
@click.option("--output-tokens", type=click.IntRange(min=1), help="Tokens of every answer.")
@click.option("--vs", metavar="GGUF|URL", help="Compare with this one, on the same prompts, in turns.")
@click.option("--model", help="For a server: the id of its model.")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="For a server: where its key is.")
@llama_cpp_option
@run_options
def bench(targets: tuple[str, ...], **flags: Any) -> None:
    from .commands.bench import bench_command

    raise SystemExit(bench_command(targets, **flags))


@cli.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--lines", is_flag=True, help="Answer each line of standard input by itself.")
@click.option("--schema", type=click.Path(path_type=Path), help="A JSON Schema that the answers must match.")
@click.option("--system", help="For a GGUF file: the system text before every text.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of an answer.  [default: the package's, else 256]")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="0 is what tune found, else every core.")
@json_option
def answer(target: Path, text: str | None, **flags: Any) -> None:
    """Answer TEXT, or standard input, with TARGET: a package, a run or a GGUF file."""
    from .commands.answer import answer_target

    answer_target(target, text, **flags)


@cli.command()
@click.argument("target")
@click.option("--device", type=click.Path(path_type=Path), help="The profile of another machine.")
@click.option("--save", type=click.Path(path_type=Path), help="Write this machine's profile, for --device elsewhere.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), help="Of a prompt.  [default: the recipe's, else 64]")
@click.option("--output-tokens", type=click.IntRange(min=1), help="Of an answer.  [default: the recipe's, else 32]")
@click.option("--target", "limit", metavar="100-500", help="Milliseconds.  [default: the recipe's, else 0-500]")
@click.option("--quant", "quants", multiple=True, help="A quant type; can be given several times.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@offline_option
@json_option
def fit(target: str, as_json: bool, quiet: bool, offline: bool, **options: Any) -> None:
    """Predict size, memory and times of TARGET, a recipe's student or a model, on this machine or another."""
    from .commands.fit import FitOptions, fit_target

    fit_target(target, FitOptions(target=options.pop("limit"), **options), as_json, quiet, offline)


@cli.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--recipe", type=click.Path(path_type=Path), help="For a GGUF file: the recipe whose prompts it gets.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@json_option
def tune(target: Path, recipe: Path | None, as_json: bool, quiet: bool) -> None:
    """Find the fastest threads, batches and KV type for TARGET on this machine; `answer` uses them."""
    from .commands.tune import tune_target

    tune_target(target, recipe, as_json, quiet)


@cli.command(
    help=f"{next(s.help for s in STAGES if s.name == 'quantize')} TARGET: a recipe, one stage of which is run; or any "
    "16-bit FILE.gguf. Texts of its task tell what matters in it, and measure what is lost: one half each."
)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--types", metavar="TYPE,...", help="For a file: its sizes, or auto.  [default: Q8_0,Q4_K_M]")
@click.option("--text", type=click.Path(path_type=Path), help="For a file: plain text of its task.")
@click.option("--prompts", type=click.Path(path_type=Path), help="For a file: chat rows, best with their answers.")
@click.option("--growth", type=click.FloatRange(1.0, 2.0), help="For a file: move bits, up to so many times the size.")
@click.option("--out", type=click.Path(path_type=Path), help="For a file: where to write.  [default: beside it]")
@llama_cpp_option
@run_options
def quantize(target: Path, **flags: Any) -> None:
    from .commands.quantize import quantize_target

    quantize_target(target, **flags)


@cli.command(help=f"{next(s.help for s in STAGES if s.name == 'package')} Takes RECIPE, or --verify FOLDER.")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "--verify",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Check a packaged folder instead: its sums, and its golden answers.",
)
@llama_cpp_option
@run_options
def package(recipe: Path | None, verify: Path | None, **flags: Any) -> None:
    from .commands.package import package_or_verify

    package_or_verify(recipe, verify, **flags)


@cli.command(help=f"{next(s.help for s in STAGES if s.name == 'teach')} One stage of RECIPE.")
@recipe_argument
@click.option("--dry-run", is_flag=True, help="Ask 8 rows, throw the answers away, say what all of them will take.")
@click.option("--export", "export", metavar="FILE", type=click.Path(path_type=Path), help="Write the answers to FILE.")
@click.option("--todo", is_flag=True, help="With --export: write requests for the answers that are not there yet.")
@click.option("--import", "taken", metavar="FILE", type=click.Path(path_type=Path), help="Take in the answers of FILE.")
@llama_cpp_option
@run_options
def teach(recipe: Path, dry_run: bool, export: Path | None, todo: bool, taken: Path | None, **flags: Any) -> None:
    if dry_run + (export is not None) + (taken is not None) > 1:
        raise click.UsageError("--dry-run, --export and --import are three things: ask for one.")
    if todo and export is None:
        raise click.UsageError("--todo says what --export writes: add --export FILE.")
    if export is not None:
        from .commands.rows import export_answers

        export_answers(recipe, export, todo, **flags)
        return
    if taken is not None:
        from .commands.rows import import_answers

        import_answers(recipe, taken, **flags)
        return
    if dry_run:
        from .commands.estimate import show_estimate

        show_estimate(recipe, **flags)
        return
    from .commands.run import run_stage

    run_stage(recipe, "teach", **flags)


@cli.command(help=f"{next(s.help for s in STAGES if s.name == 'curate')} One stage of RECIPE.")
@recipe_argument
@click.option("--explain", metavar="ROW", help="Say what each rule says to a row, by its id or its prompt's text.")
@llama_cpp_option
@run_options
def curate(recipe: Path, explain: str | None, **flags: Any) -> None:
    if explain is not None:
        from .commands.curate import show_explained

        show_explained(recipe, explain, flags["as_json"], flags["runs"])
        return
    from .commands.run import run_stage

    run_stage(recipe, "curate", **flags)


@cli.command(help=f"{next(s.help for s in STAGES if s.name == 'train')} One stage of RECIPE.")
@recipe_argument
@track_option
@llama_cpp_option
@run_options
def train(recipe: Path, **flags: Any) -> None:
    from .commands.run import run_stage

    run_stage(recipe, "train", **flags)


@cli.command(
    help=f"{next(s.help for s in STAGES if s.name == 'prompts')} One stage of RECIPE; or, with --import, "
    "a FILE's prompts as rows of our own."
)
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--import", "taken", metavar="FILE", type=click.Path(path_type=Path), help="A file or folder to read.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="With --import: where the rows go.")
@click.option("--answers", metavar="FILE", type=click.Path(path_type=Path), help="... and those with an answer.")
@click.option("--format", "kind", metavar="NAME", help="... how it is to be read; otherwise its rows show it.")
@click.option("--prompt-column", metavar="NAME", help="... of a table, the column with the prompt.")
@click.option("--scrub/--no-scrub", default=None, help="... with personal data replaced.  [default: in logs]")
@llama_cpp_option
@run_options
def prompts(recipe: Path | None, taken: Path | None, **flags: Any) -> None:
    from .commands.importing import prompts_command

    prompts_command(recipe, taken, **flags)


def add_stage_command(stage: Stage) -> None:
    @cli.command(name=stage.name, help=f"{stage.help} One stage of RECIPE.")
    @recipe_argument
    @llama_cpp_option
    @run_options
    def run_one(recipe: Path, **flags: Any) -> None:
        from .commands.run import run_stage

        run_stage(recipe, stage.name, **flags)


for _stage in STAGES:
    if _stage.name not in cli.commands:
        add_stage_command(_stage)


if __name__ == "__main__":
    cli()
