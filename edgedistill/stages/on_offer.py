"""What the recipe gives each row: tools, who is shown them, how answers are held to them; and a user with a goal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..chat import json_instance
from ..errors import InvalidInput
from ..llamacpp.call_grammar import CALLS, calls_rule
from ..recipe import Recipe, TeacherSettings
from ..records import Prompt, Tool, digest, prompt_id, tools_of
from ..run import file_sha256
from ..schema import load_schema, schema_validator
from .tool_calls import fault

__all__ = [
    "are_held",
    "device_rule",
    "fine_by",
    "goes_in_steps",
    "held_to",
    "is_fine",
    "learned_tools",
    "offered",
    "ran_by",
    "recipe_tools",
    "require_held",
    "shown_to",
    "teacher_rule",
    "wanting",
]

Rule = dict[str, Any]
SERVER = "openai"  # the backend that holds calls itself


def goes_in_steps(recipe: Recipe) -> bool:
    """Whether anything may stand between a prompt and its final answer: calls that are run, or what a user says."""
    return recipe.tools.are_run or recipe.user.turns > 0


def recipe_tools(recipe: Recipe) -> tuple[Tool, ...]:
    """The tools of `tools.file`, none where the recipe names no file.

    Raises InvalidInput that names the file where it holds no list of tools.
    """
    if recipe.tools.file is None:
        return ()
    path = recipe.file(recipe.tools.file)
    try:
        return read_tools(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", "Correct tools.file in the recipe.") from error


@lru_cache(maxsize=4)
def read_tools(path: Path, text: str) -> tuple[Tool, ...]:
    """The tools in the text of a file. Raises what `recipe_tools` raises."""
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error})", "Mend the file.") from error
    found = tools_of(str(path), tools)
    if not found:
        raise InvalidInput(f"{path}: no tools", "Write a list of tools as OpenAI does.")
    return found


def offered(recipe: Recipe, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Prompts with the recipe's tools, goal and persona, where they bring none of their own."""
    tools = recipe_tools(recipe)
    for prompt in prompts:
        yield wanting(recipe, _with(prompt, tools) if tools and not prompt.tools else prompt)


def wanting(recipe: Recipe, prompt: Prompt) -> Prompt:
    """A prompt with what its user wants, and who that is: its own, or the recipe's goal and one of its personas.

    As it is where the recipe has no simulated user, or the row no goal.
    """
    user = recipe.user
    goal = prompt.goal or user.goal or ""
    if not user.turns or not goal:
        return prompt
    drawn = int(digest(recipe.seed, prompt.id)[:8], 16) % max(1, len(user.personas))
    persona = prompt.persona or (user.personas[drawn] if user.personas else "")
    return replace(prompt, goal=goal, persona=persona)


def shown_to(recipe: Recipe, who: Literal["teacher", "student"]) -> Callable[[Prompt], Prompt]:
    """What a teacher sees of a row, or a student: where that learns the recipe's tools, the row without them.

    The tools are read once, not for each row. What is returned raises what `require_held` raises.
    """
    tools, learned, is_held = recipe_tools(recipe), learned_tools(recipe), are_held(recipe)

    def shown(prompt: Prompt) -> Prompt:
        if not tools:
            return prompt
        if is_held:
            require_held(prompt, tools, str(recipe.path))
        whole = prompt if prompt.tools else _with(prompt, tools)
        return _with(whole, ()) if who == "student" and whole.tools == learned else whole

    return shown


def are_held(recipe: Recipe) -> bool:
    """Whether answers are held to the recipe's tools: those of a teacher on this machine, or the candidates'."""
    is_local = any(teacher.backend != SERVER for teacher in recipe.teachers)
    return recipe.tools.file is not None and (is_local or recipe.evaluate.constrained)


def require_held(prompt: Prompt, tools: tuple[Tool, ...], where: str) -> None:
    """Raise InvalidInput where a row brings other tools than those that all answers are held to."""
    if prompt.tools and not same_tools(prompt.tools, tools):
        raise InvalidInput(
            f"{where}: the row {prompt.text[:60]!r} brings other tools than tools.file has, to which answers are held",
            "Leave the row's tools out, or tools.file; or let a server teach and write evaluate.constrained = false.",
        )


def same_tools(some: Sequence[Tool], others: Sequence[Tool]) -> bool:
    """Whether both are the same tools, in whatever order.

    >>> same_tools(({"a": 1}, {"b": 2}), ({"b": 2}, {"a": 1})), same_tools(({"a": 1},), ())
    (True, False)
    """
    return sorted(map(digest, some)) == sorted(map(digest, others))


def learned_tools(recipe: Recipe) -> tuple[Tool, ...]:
    """The tools that the student is not shown but learns."""
    return () if recipe.tools.student else recipe_tools(recipe)


def teacher_rule(recipe: Recipe, teacher: TeacherSettings) -> Rule | None:
    """What a teacher's answers are held to while they are decoded: the recipe's schema, or its tools."""
    return held_to(load_schema(recipe) or _calls(recipe), teacher)


def ran_by(recipe: Recipe) -> list[Any]:
    """What decides the results of calls, for the keys of answers; nothing where calls are not run."""
    tools = recipe.tools
    table = None if tools.table is None else file_sha256(recipe.file(tools.table))
    return [tools.results, tools.steps, table, tools.command] if tools.are_run else []


def device_rule(recipe: Recipe) -> Rule | None:
    """The same for candidates, as far as the recipe wants them held to anything."""
    return (load_schema(recipe) or _calls(recipe)) if recipe.evaluate.constrained else None


def held_to(rule: Rule | None, asked: TeacherSettings | None) -> Rule | None:
    """A rule as a backend takes it; a server is given tools with each request, and holds its calls to them itself."""
    is_server = asked is not None and asked.backend == SERVER
    return None if is_server and rule is not None and CALLS in rule else rule


def is_fine(recipe: Recipe) -> Callable[[Prompt, str], bool]:
    """Whether an answer to a row of the recipe is valid, as `fine_by` tells it."""
    return fine_by(schema_validator(load_schema(recipe)), recipe_tools(recipe))


def fine_by(is_valid: Callable[[Any], bool] | None, tools: tuple[Tool, ...]) -> Callable[[Prompt, str], bool]:
    """Whether an answer is valid: by the schema; by the tools on offer, where there are any; else, not empty.

    >>> fine_by(None, ())(Prompt("1", ()), " ")
    False
    """

    def check(prompt: Prompt, answer: str) -> bool:
        if is_valid is not None:
            return bool(is_valid(json_instance(answer)))
        on_offer = prompt.tools or tools
        return bool(answer.strip()) and (not on_offer or fault(answer, on_offer) is None)

    return check


def _calls(recipe: Recipe) -> Rule | None:
    tools = recipe_tools(recipe)
    return calls_rule(tools) if tools else None


def _with(prompt: Prompt, tools: tuple[Tool, ...]) -> Prompt:
    return replace(prompt, id=prompt_id(prompt.messages, tools), tools=tools)
