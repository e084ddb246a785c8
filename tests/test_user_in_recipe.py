"""A user who goes on, in a recipe: its settings, what check says, and a run through the stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pico import pico_gguf, pico_hf_folder, reconfigured, silent
from pico_recipe import EVAL, PROMPTS, PicoModels, edit, own_copy, rows, write_pico_recipe
from test_estimate import dry_run
from test_simulated_user import DONE, Teacher, goes_on

from edgedistill.errors import InvalidInput, Unsafe
from edgedistill.llamacpp.kept_turns import KeptTurns
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.pipeline import RunSettings, run_recipe, stage_keys
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.records import Completion, Prompt, json_lines, read_json, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages import teach
from edgedistill.stages.on_offer import wanting
from edgedistill.stages.privacy import require_private
from edgedistill.stages.rows import asked_keys
from edgedistill.stages.scorer_desk import Desk
from edgedistill.stages.simulated_user import player_identity, playing, require_user
from edgedistill.store import Store

USER = '[user]\nturns = 2\ngoal = "the light is on"\npersonas = ["curt", "polite", "in a hurry"]\n\n'


@pytest.fixture
def folder(models: PicoModels, tmp_path: Path) -> Path:
    """A recipe of free text whose user goes on."""
    return write_talking_recipe(tmp_path / "recipe", own_copy(models, tmp_path / "models"))


def write_talking_recipe(folder: Path, models: PicoModels) -> Path:
    changes = {
        'schema_file = "schema.json"\n': "",
        "[teach]\nmax_tokens = 40": f"{USER}[teach]\nmax_tokens = 12",
        "valid_share = 0.2": 'valid_share = 0.2\nskip = ["turn limit", "user gave up", "repetition"]',
        'edge_file = "edge.jsonl"\nmax_tokens = 40': 'scorer = "goal"\nmax_tokens = 12',
        "max_length = 128": "max_length = 1024",
        "valid = 0.9": "valid = 0.0\nof_whole_prompt = 0.0",
    }
    write_pico_recipe(folder, models, changes)
    (folder / "edge.jsonl").unlink()
    (folder / "prompts.jsonl").write_bytes(rows(PROMPTS[:12]))
    return folder


def test_a_row_has_its_own_goal_and_persona_or_the_recipes(folder: Path, tmp_path: Path) -> None:
    own = {"messages": [{"role": "user", "content": "Out with it"}], "goal": "it is dark", "persona": "tired"}
    (folder / "prompts.jsonl").write_bytes(rows(PROMPTS[:12]) + json_lines([own]))
    settings = RunSettings(runs=tmp_path / "runs", offline=True, only="prompts")
    run, _ = run_recipe(folder, settings, silent)
    found = read_prompts(run.folder("prompts") / "prompts.jsonl")
    assert (found[-1].goal, found[-1].persona) == ("it is dark", "tired")
    assert {prompt.goal for prompt in found[:-1]} == {"the light is on"}
    personas = [prompt.persona for prompt in found[:-1]]
    assert len(set(personas)) > 1
    recipe = load_recipe(folder)
    assert [wanting(recipe, replace(prompt, persona="")).persona for prompt in found[:-1]] == personas
    edit(folder / "recipe.toml", "seed = 7", "seed = 8")
    again = load_recipe(folder)
    assert [wanting(again, replace(prompt, persona="")).persona for prompt in found[:-1]] != personas


def test_settings_of_the_user_reach_the_stages_that_they_decide(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)

    def keys() -> dict[str, str]:
        return stage_keys(load_recipe(folder), run)

    def changed(old: str, new: str) -> list[str]:
        before = keys()
        edit(folder / "recipe.toml", old, new)
        after = keys()
        return [name for name in before if before[name] != after[name]]

    assert changed("turns = 2", "turns = 3")[0] == "teach"
    assert changed("turns = 3", "turns = 3\ntemperature = 0.0")[0] == "teach"
    assert changed('"curt", ', "")[0] == "prompts"
    edit(folder / "recipe.toml", 'scorer = "goal"\n', "")
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    start, end = text.index("[user]"), text.index("[teach]")
    (folder / "recipe.toml").write_text(text[:start] + "[user]\n" + text[end:], encoding="utf-8")
    assert changed("[user]\n", "") == [], "a table that says nothing leaves runs of an earlier version as they were"


def test_check_says_who_goes_on_and_refuses_what_cannot_work(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    (line,) = [one.found for one in check(load_recipe(folder), run) if one.what == "user"]
    assert line.endswith("; up to 2 messages behind those of 12 of 12 rows, 3 personas")
    edit(folder / "recipe.toml", 'goal = "the light is on"\n', "")
    with pytest.raises(InvalidInput, match="no row has a goal"):
        require_user(load_recipe(folder))
    row = {"messages": [{"role": "user", "content": "hm"}], "goal": "it is dark"}
    (folder / "prompts.jsonl").write_bytes(json_lines([row]))
    with pytest.raises(InvalidInput, match=r"eval\.jsonl: no row has a goal"):
        require_user(load_recipe(folder))
    (folder / "eval.jsonl").write_bytes(json_lines([row]))
    assert "1 of 1 rows" in require_user(load_recipe(folder))
    edit(folder / "recipe.toml", "seed = 7\n", 'seed = 7\nschema_file = "schema.json"\n')
    with pytest.raises(InvalidInput, match="closed set"):
        require_user(load_recipe(folder))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("turns = 2", "turns = 0", "'goal' is told by who plays the user"),
        ("max_tokens = 12\nslots", "max_tokens = 12\ntemperature = 1.0\nsamples = 2\nslots", "none can vote"),
        ("slots = 4\n\n[curate]", 'slots = 4\nretries = 1\n\n[curate]\nright_by = "number"', "neither tried again"),
        ("turns = 2", 'turns = 2\nurl = "http://127.0.0.1:1/v1"', "name it"),
        ("turns = 2", 'turns = 2\nmodel = "m"\nbackend = "openai"', "url belongs to"),
        ("[user]", '[tools]\nfile = "tools.json"\n\n[user]', "waits for what comes of a call"),
    ],
)
def test_a_recipe_whose_user_could_not_go_on_is_refused(folder: Path, old: str, new: str, problem: str) -> None:
    edit(folder / "recipe.toml", old, new)
    with pytest.raises(InvalidInput, match=problem):
        load_recipe(folder)


def test_a_player_that_knows_too_few_tokens_is_refused_before_anything_is_asked(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    assert "up to 2 messages" in next(one.found for one in check(load_recipe(folder), run) if one.what == "user")
    small = reconfigured(pico_hf_folder(tmp_path / "small"), lambda config: config.update(max_position_embeddings=1024))
    write_gguf(small, tmp_path / "small.gguf", GgufMetadata(name="Small"), silent)
    edit(folder / "recipe.toml", "turns = 2", f'turns = 2\nmodel = "{tmp_path / "small.gguf"}"')
    with pytest.raises(InvalidInput, match=r"small\.gguf knows too few tokens to play the user"):
        check(load_recipe(folder), run)


def test_what_the_user_wants_leaves_the_machine_with_its_player_alone(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    (folder / "prompts.jsonl").write_bytes(rows(PROMPTS[:2], goal="write to anna@example.com"))
    assert require_private(load_recipe(folder), run) == "stays on this machine"
    server = 'turns = 2\nmodel = "m"\nbackend = "openai"\nurl = "https://models.example.com/v1"'
    edit(folder / "recipe.toml", "turns = 2", server)
    with pytest.raises(Unsafe, match="personal data"):
        require_private(load_recipe(folder), run)


def test_conversations_are_in_no_file_of_rows(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"user\.turns"):
        asked_keys(load_recipe(folder), Run(tmp_path / "run", offline=True), silent)


def test_a_dry_run_says_that_it_counts_first_answers(folder: Path, tmp_path: Path) -> None:
    found = dry_run(folder, tmp_path / "runs")
    assert "First answers alone are counted, not up to 2 messages of the user a row" in found.stdout, found.output
    counted = json.loads(dry_run(folder, tmp_path / "runs", "--json").stdout)["counted"]
    assert counted == "first answers"


def test_another_player_is_asked_anew(folder: Path, models: PicoModels, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    first = player_identity(load_recipe(folder), True)
    keys = stage_keys(load_recipe(folder), run)
    other = pico_gguf(tmp_path / "other.gguf", "qwen2", tied=False, seed=9)
    edit(folder / "recipe.toml", "turns = 2", f'turns = 2\nmodel = "{other}"')
    recipe = load_recipe(folder)
    assert player_identity(recipe, True) not in (first, None)
    assert stage_keys(recipe, run)["teach"] != keys["teach"]
    assert stage_keys(recipe, run)["prompts"] == keys["prompts"]
    with Store(tmp_path / "desk.sqlite") as desk, playing(recipe, Desk(desk, True, tmp_path, silent)) as player:
        assert player is not None
        assert player.identity == player_identity(recipe, True), "check, dry run and teach mean the same player"


# -- through the stages


def test_rows_hold_the_conversation_and_the_reason_why_one_is_not_learned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and player are scripts, so that conversations go somewhere; all else is a run."""
    edit(folder / "recipe.toml", 'skip = ["turn limit", "user gave up", "repetition"]', "")
    edit(folder / "recipe.toml", "valid_share = 0.2", "valid_share = 0.0")
    texts = ["A lamp for the hall, please", "Which heater is the best one?", "My radio makes a noise", "Fan!"]
    (folder / "prompts.jsonl").write_bytes(rows(tuple(texts)))
    ends = [[goes_on("In blue?"), DONE], [goes_on("Why?"), goes_on("And?"), goes_on("So?")]]
    ends += [[{"state": "gives up", "person": ""}], [goes_on("Fan.")]]
    script, words = Teacher(), dict(zip(texts, ends, strict=True))

    class Scripted:
        def complete(
            self, prompts: Iterable[Prompt], settings: Any, seed: int, wanted: Any = None
        ) -> Iterator[Completion]:
            return script.ask(prompts)

        def close(self) -> None: ...

    class Playing:
        asked = 0

        def complete(self, prompts: Iterable[Prompt], settings: Any, seed: int) -> Iterator[Completion]:
            assert settings.temperature == 0.7
            for prompt in prompts:
                Playing.asked += 1
                turns = json.loads(prompt.text)["conversation"].splitlines()
                place = sum(turn.startswith("desk: ") for turn in turns) - 1
                line = words[turns[0].removeprefix("person: ")][place]
                yield Completion(prompt.id, json.dumps(line), "stop", 1, 1, 0.0)

        def close(self) -> None: ...

    monkeypatch.setattr(teach, "load_teacher", lambda task: Scripted())
    monkeypatch.setattr("edgedistill.stages.candidates.load_teacher", lambda task: Playing())
    for stage in ("prompts", "teach", "curate"):
        run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True, only=stage), silent)
    (row,) = [row for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in row["messages"]][2] == "In blue?"
    rejected = {
        row["messages"][0]["content"]: (row["_ed"]["reason"], row["_ed"]["what"])
        for _, row in read_rows(run.folder("curate") / "rejected.jsonl")
    }
    assert rejected == {
        texts[1]: ("turn limit", "the user had not reached its goal"),
        texts[2]: ("user gave up", "the user gave up"),
        texts[3]: ("user gave up", "the user said the same again"),
    }
    asked = len(script.asked), Playing.asked
    again = RunSettings(runs=tmp_path / "runs", offline=True, only="teach", redo_from="teach")
    run_recipe(folder, again, silent)
    assert (len(script.asked), Playing.asked) == asked, "what is stored is not asked again"


def test_a_conversation_with_a_user_goes_through_all_stages(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real path, on models that talk nonsense: whatever they say, each conversation ends and is told how."""
    went_on: list[bool] = []
    keep = KeptTurns.keep

    def watched(self: KeptTurns, *turn: Any) -> None:
        keep(self, *turn)
        went_on.append(self.resumed_tokens > 0)

    monkeypatch.setattr(KeptTurns, "keep", watched)
    edit(folder / "recipe.toml", "seed = 7\n", 'seed = 7\nschema_file = "schema.json"\n')
    edit(folder / "recipe.toml", "slots = 4", "slots = 4\nclosed = false")
    edit(folder / "recipe.toml", "max_tokens = 12", "max_tokens = 40")
    (folder / "eval.jsonl").write_bytes(rows(EVAL[:16]))
    run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True), silent)
    with Store(run.folder("teach") / "teacher.sqlite", read_only=True) as store:
        words = [one.text for _, one in store.rows() if one.text.startswith('{"state"')]
    assert words
    assert any(went_on), "what was read of a conversation is not read anew"
    learned = [row for name in ("train", "valid") for _, row in read_rows(run.folder("curate") / f"{name}.jsonl")]
    for row in learned:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    evaluation = read_json(run.folder("evaluate") / "evaluation.json")
    assert evaluation["scorer"] == "goal"
    assert all(person["eval"]["score"] is not None for person in evaluation["candidates"])
