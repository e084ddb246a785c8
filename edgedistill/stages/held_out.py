"""The rows on which is measured what was lost: whole answers that nobody has learnt, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..llamacpp.answer import SharedPrompt
from ..llamacpp.comparison import ScoredText
from ..llamacpp.divergence import Divergence, KeptRow, kept_rows
from ..llamacpp.model import LlamaModel
from ..recipe import Recipe
from ..records import Tool
from ..run import Progress, Run
from ..students.encode import EncodedExample, Encoder
from ..teachers import preamble
from ..teachers.identity import fetch_teacher
from .on_offer import recipe_tools
from .prompt_source import source_prompts
from .taught import SampledRow, TaughtRows
from .tokenizers import SHOWN, aligner_between

__all__ = ["WORST", "HeldOut", "TeacherSide", "held_out", "quoted", "text_of", "told_by"]

HELD_OUT = 8192  # tokens of prompts and answers that are compared
LEARNT = 8192  # ... and that tell which weights matter
WORST = 10  # tokens that are quoted of each quant
QUOTED_BEFORE = 48  # characters of a text before a token that is quoted


@dataclass(frozen=True)
class TeacherSide:
    """The teacher's own distributions at the held-out answers: kept ones, or a GGUF to ask, or neither."""

    kept: Sequence[Sequence[KeptRow | None]] = ()
    """By row, then by scored token."""
    model: Path | None = None
    texts: Sequence[ScoredText] = ()
    """The rows as the teacher's own prompt begins them."""


@dataclass(frozen=True)
class HeldOut:
    """What is compared: `rows` of the part `of` the curated rows; `learnt` are others, of the training part."""

    rows: Sequence[SampledRow]
    learnt: Sequence[ScoredText]
    of: str
    teacher: TeacherSide

    @property
    def texts(self) -> list[ScoredText]:
        """The rows as the student sees them."""
        return [text_of(row.example) for row in self.rows]


def text_of(example: EncodedExample) -> ScoredText:
    """A row of which the answer is scored, the token that ends it included."""
    return ScoredText(example.tokens, example.start)


def held_out(recipe: Recipe, run: Run, encoder: Encoder, progress: Progress) -> HeldOut:
    """Rows of `valid.jsonl`; where there are none, rows that were learnt, apart from those that tell what matters."""
    weights = [fetch_teacher(recipe, teacher, run.offline, progress).path for teacher in recipe.teachers]
    has_kept = recipe.teach.targets == "top_k" and _share_tokens(recipe, run, weights)
    # whatever the loss was: the answers in the teacher's own tokens where it has kept their distributions
    loss: dict[str, Any] = {"loss": "soft" if has_kept else "hard"}
    taught = recipe.model_copy(update={"train": recipe.train.model_copy(update=loss)})
    with TaughtRows(taught, run, encoder) as source:
        rows, of = source.sample("valid", HELD_OUT), "valid"
        learnt = source.sample("train", LEARNT if rows else HELD_OUT + LEARNT)
        if not rows:
            rows, learnt, of = learnt[::2], learnt[1::2] or learnt, "train"
        kept = [_kept(source, row.example) for row in rows] if has_kept else []
    if any(one is not None for row in kept for one in row):
        teacher = TeacherSide(kept=kept)
    else:
        teacher = _asked(recipe, run, weights, rows)
    return HeldOut(rows, [text_of(row.example) for row in learnt], of, teacher)


def _share_tokens(recipe: Recipe, run: Run, weights: Sequence[Path | None]) -> bool:
    """Whether every teacher splits text as the student does; a server's weights are not here to be asked."""
    student = run.folder("export") / "student"
    for teacher in weights:
        shown = islice(source_prompts(recipe), SHOWN)
        if teacher is None or aligner_between(teacher, student, (prompt.text for prompt in shown)) is not None:
            return False
    return True


def _kept(source: TaughtRows, example: EncodedExample) -> list[KeptRow | None]:
    """The kept distribution at each scored token of a row, None where there is none."""
    targets = source.targets(example.key) if example.key else None
    found: list[KeptRow | None] = list(kept_rows(targets)) if targets is not None else []
    scored = len(example.tokens) - example.start
    return [*found[:scored], *([None] * (scored - len(found)))]


def _asked(recipe: Recipe, run: Run, weights: Sequence[Path | None], rows: Sequence[SampledRow]) -> TeacherSide:
    """The first teacher where it is a GGUF of the student's tokenizer: it is asked in the same pass."""
    path = weights[0]
    if recipe.teacher.backend != "llamacpp" or path is None or not _share_tokens(recipe, run, weights[:1]):
        return TeacherSide()
    with ExitStack() as stack:
        model = stack.enter_context(LlamaModel(path, vocab_only=True))
        tools = recipe_tools(recipe)
        shared = SharedPrompt(model, preamble(recipe, recipe.teacher), tools)
        texts = [_shown(shared, row, row.tools or tools) for row in rows]
    return TeacherSide(model=path, texts=texts)


def _shown(shared: SharedPrompt, row: SampledRow, tools: tuple[Tool, ...]) -> ScoredText:
    """A row behind the teacher's own prompt."""
    count, own = shared.split(row.messages[:-1], tools)
    before = (*shared.tokens[:count], *own)
    return ScoredText((*before, *row.example.tokens[row.example.start :]), len(before))


def quoted(
    found: Divergence, texts: Sequence[ScoredText], ids: Sequence[str], text: Callable[[Sequence[int]], str], count: int
) -> list[dict[str, Any]]:
    """The tokens at which two models are furthest apart: row, place in the answer, what each would have said.

    `text` makes text of tokens; a special token alone is told by its name.
    """
    places = [(number, token) for number, row in enumerate(texts) for token in range(row.scored)]
    lines = []
    for place in found.worst(count):
        number, token = places[place]
        row = texts[number]
        lines.append(
            {
                "id": ids[number],
                "token": token,
                "kl": round(float(found.kl[place]), 4),
                "before": text(row.tokens[: row.start + token])[-QUOTED_BEFORE:],
                "text": text(row.tokens[row.start + token :][:1]),
                "reference": text([int(found.reference_top[place])]),
                "quant": text([int(found.other_top[place])]),
            }
        )
    return lines


def told_by(encoder: Encoder) -> Callable[[Sequence[int]], str]:
    """Tokens as text, a special token alone by its name."""
    names = encoder.special_tokens()
    return lambda tokens: names.get(tokens[0], "") if len(tokens) == 1 and tokens[0] in names else encoder.text(tokens)
