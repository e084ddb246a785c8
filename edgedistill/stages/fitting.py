"""fit: what a student will take on a machine, before it is trained, and which student and lengths would do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..errors import EdgeDistillError, GateMissed, InvalidInput
from ..llamacpp.answer import SharedPrompt
from ..llamacpp.calibration import BUSY, Profile, load_profile
from ..llamacpp.model import LlamaModel
from ..llamacpp.prediction import ERROR, Forecast, forecast, longest_answer, longest_prompt
from ..llamacpp.shapes import Shape, mixture, shape_of_config, shape_of_folder, shape_of_gguf
from ..models import Identity, cache_root, identify
from ..recipe import Recipe
from ..records import Message, Prompt, common_length, read_prompts
from ..run import Run
from ..students.encode import Encoder
from .latency import nearest_rank
from .on_offer import recipe_tools
from .scorers import right_text

__all__ = ["QUANTS", "Ask", "ask_of_recipe", "fit", "kept_profiles", "require_fit", "shape_of_identity", "types_asked"]

QUANTS = ("Q8_0", "Q5_K_M", "Q4_K_M")  # where nobody names others
CHARACTERS = 4  # of a token, where there is no tokenizer yet

# the catalogue's models by their published config.json: they can be judged before they are here
COMMON = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
QWEN2 = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_act": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-coder-1.5b-instruct": {
        **QWEN2,
        **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
        **{"num_attention_heads": 12, "num_key_value_heads": 2},
    },
    "qwen2.5-coder-0.5b-instruct": {
        **QWEN2,
        **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2},
    },
    "smollm2-135m-instruct": {
        **COMMON,
        **{"architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_act": "silu"},
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3},
    },
}


@dataclass(frozen=True)
class Ask:
    """A request: own tokens of the prompt, tokens before them that are kept, tokens of the answer, and how long."""

    prompt: int
    output: int
    limit_ms: float
    metric: str = "e2e"
    shared: int = 0


def kept_profiles() -> Path:
    """The folder in which this machine's profile is kept."""
    return cache_root() / "profiles"


def shape_of_identity(identity: Identity) -> Shape | None:
    """The shape of a model, from its files or from the catalogue; None where neither is there.

    Raises InvalidInput where it is of a kind that cannot be predicted.
    """
    if identity.path is not None:
        return shape_of_gguf(identity.path) if identity.format == "gguf" else shape_of_folder(identity.path)
    config = CONFIGS.get(identity.name)
    return None if config is None else shape_of_config(identity.name, config)


def types_asked(recipe: Recipe) -> tuple[str, ...]:
    """The quant types that a recipe makes, or the usual ones where it leaves that open."""
    types = recipe.quantize.types
    return QUANTS if isinstance(types, str) or "auto" in types else tuple(types)


def catalogue_types(quants: Sequence[str]) -> set[str]:
    """The types of every tensor of every model of the catalogue, so that another student can be named."""
    shapes = [shape_of_config(name, config) for name, config in CONFIGS.items()]
    return {kind for shape in shapes for quant in quants for kind in mixture(shape, quant).values()}


def fit(shape: Shape, quants: Mapping[str, Mapping[str, str]], profile: Profile, ask: Ask) -> dict[str, Any]:
    """What each quant will take, and what would do; `quants` holds each one's types by tensor.

    `meets` is "yes" or "no" where the prediction is further from the limit than its error, else "close". Raises
    InvalidInput where the profile does not know a type.
    """
    rows = []
    for quant, types in quants.items():
        told = forecast(shape, types, profile, ask.prompt, ask.output, ask.shared)
        rows.append({"quant": quant, **asdict(told), "meets": _meets(told, profile, ask)})
    best = min(rows, key=lambda row: row[f"{ask.metric}_ms"])
    types = quants[best["quant"]]
    limits = (profile, ask.limit_ms, ask.shared)
    return {
        "model": shape.name,
        "parameters": shape.parameters,
        "machine": {"cpu": profile.cpu, "threads": profile.threads, "busy": profile.busy},
        "request": asdict(ask),
        "choosing_ms": round(profile.choosing / 1e6, 4),
        "quants": rows,
        "fastest": best["quant"],
        "longest_answer": longest_answer(shape, types, limits[0], ask.prompt, *limits[1:]),
        "longest_prompt": longest_prompt(shape, types, limits[0], ask.output, *limits[1:]),
        "largest_student": _largest(list(quants), profile, ask),
    }


def _meets(told: Forecast, profile: Profile, ask: Ask) -> str:
    value = told.ttft_ms if ask.metric == "ttft" else told.e2e_ms
    if value * (1 - ERROR) > ask.limit_ms or told.memory_bytes * (1 - ERROR) > profile.memory_bytes:
        return "no"
    return "yes" if value * (1 + ERROR) <= ask.limit_ms else "close"


def _largest(quants: Sequence[str], profile: Profile, ask: Ask) -> dict[str, Any] | None:
    """The largest student of the catalogue that meets the target in one of these quants."""
    shapes = sorted((shape_of_config(name, one) for name, one in CONFIGS.items()), key=lambda one: -one.parameters)
    for shape in shapes:
        for quant in quants:
            try:
                told = forecast(shape, mixture(shape, quant), profile, ask.prompt, ask.output, ask.shared)
            except EdgeDistillError:  # a type that the profile does not know
                continue
            if _meets(told, profile, ask) == "yes":
                return {"model": shape.name, "quant": quant, **asdict(told)}
    return None


def ask_of_recipe(recipe: Recipe, identity: Identity) -> Ask:
    """The request that `bench` will time: as long as the percentile of the eval set's, in the student's tokens."""
    settings = recipe.bench
    count, shared = _counting(recipe, identity)
    rows = read_prompts(recipe.file(recipe.evaluate.file))
    prompts = sorted(count(with_system(recipe.student.system, row.messages)) for row in rows) or [1]
    answers = sorted(
        _answer_tokens(row, count, recipe.evaluate.max_tokens, recipe.evaluate.scorer) for row in rows
    ) or [1]
    prompt = settings.prompt_tokens or nearest_rank(prompts, settings.percentile)
    kept = min(shared, prompt - 1) if settings.cache == "cached-prefix" else 0
    output = settings.output_tokens or min(recipe.evaluate.max_tokens, nearest_rank(answers, settings.percentile))
    return Ask(max(1, prompt - kept), max(1, output), settings.target_ms[1], settings.metric, kept)


Count = Callable[[Sequence[Message]], int]


def _answer_tokens(row: Prompt, count: Count, most: int, scorer: str) -> int:
    """Tokens of a row's right answer, or the most there may be."""
    if row.expected is None:
        return most
    both = (Message("user", "a"), Message("user", f"a {right_text(scorer, row.expected)}"))
    return max(1, count(both[1:]) - count(both[:1]))


def _counting(recipe: Recipe, identity: Identity) -> tuple[Count, int]:
    """How a conversation's tokens are counted, and how many all of the student's begin with."""
    tools = recipe_tools(recipe) if recipe.tools.student else ()
    if identity.path is None:
        system = len(recipe.student.system) // CHARACTERS
        return lambda messages: sum(8 + len(one.content) // CHARACTERS for one in messages), system
    if identity.format == "hf":
        encoder = Encoder(identity.path)

        def ids(messages: Sequence[Message]) -> list[int]:
            return encoder.ids(encoder.template.render(messages, tools=tools))

        one, other = (ids(with_system(recipe.student.system, (Message("user", text),))) for text in "ab")
        return lambda messages: len(ids(messages)), common_length(one, other)
    model = LlamaModel(identity.path, vocab_only=True)  # freed with what counts by it
    template = model.chat_template()
    return (
        lambda messages: len(model.tokenize(template.render(messages, tools=tools))),
        len(SharedPrompt(model, with_system(recipe.student.system, ()), tools).tokens),
    )


def require_fit(recipe: Recipe, run: Run) -> str:
    """What the cached profile of this machine says of the recipe's student; nothing is measured.

    Raises GateMissed where every quant misses the target by more than the prediction's error.
    """
    profile = load_profile(kept_profiles())
    if profile is None:
        return f"not predicted: edgedistill fit {recipe.path.parent} calibrates once, in seconds"
    identity = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    try:
        shape = shape_of_identity(identity)
        if shape is None:
            return "not predicted: the student is not on this machine"
        ask = ask_of_recipe(recipe, identity)
        found = fit(shape, {quant: mixture(shape, quant) for quant in types_asked(recipe)}, profile, ask)
    except InvalidInput as error:
        return f"not predicted: {error.message}"
    best = min(found["quants"], key=lambda row: row[f"{ask.metric}_ms"])
    told = f"{best['quant']} about {best[f'{ask.metric}_ms']:.0f} ms for {ask.prompt} + {ask.output} tokens"
    if any(row["meets"] != "no" for row in found["quants"]):
        return f"{told}, the target is {ask.limit_ms:g} ms"
    if profile.busy > BUSY:
        return (
            f"{told}; warning: over the target of {ask.limit_ms:g} ms, but this machine was busy when it was measured"
        )
    raise GateMissed(
        f"{recipe.path}: {shape.name} cannot answer in {ask.limit_ms:g} ms here: {told}, +-{ERROR:.0%}",
        what_would_do(found),
    )


def what_would_do(found: Mapping[str, Any]) -> str:
    """Which student and which lengths would meet the target, in one line."""
    ask, parts = found["request"], []
    if found["largest_student"] is not None:
        parts.append(f"{found['largest_student']['model']} ({found['largest_student']['quant']}) can")
    if 0 < found["longest_answer"] < ask["output"]:
        parts.append(f"this one can write {found['longest_answer']} tokens behind a prompt of {ask['prompt']}")
    if 0 < found["longest_prompt"] < ask["prompt"]:
        parts.append(f"or take a prompt of {found['longest_prompt']} with an answer of {ask['output']}")
    return f"{'; '.join(parts) or 'No student of the catalogue can'}; or raise bench.target_ms."
