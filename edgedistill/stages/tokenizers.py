"""Whether teacher and student split text alike, and what a soft loss does where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path

from ..chat import answer_text
from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import iter_prompts
from ..students.alignment import Aligner, require_aligned
from ..students.same_tokenizer import Difference, answer_end, difference, probe_texts
from ..students.tokens import Tokens, opened_tokens
from .prompt_source import source_prompts

__all__ = ["SHOWN", "aligner_between", "require_tokenizers"]

SHOWN = 200  # prompts that both split, and answers that tell how much of a text both split alike


def aligner_between(teacher: Path, student: Path, prompts: Iterable[str]) -> Aligner | None:
    """What aligns the tokens of two models, GGUF files or folders; None where they have one tokenizer."""
    with opened_tokens(teacher) as theirs, opened_tokens(student) as mine:
        if _difference(theirs, mine, prompts) is None:
            return None
        # the first token that puts nothing into a text: a template may write a space before it
        end = next(token for token in mine.ids(answer_end(mine.template)) if not mine.pieces[token])
        return Aligner(theirs.pieces, mine.pieces, dict.fromkeys(theirs.ends, end))


def require_tokenizers(recipe: Recipe, teachers: list[Path | None], student: Path | None) -> str:
    """What a loss over tokens will find, as far as the models are on this machine.

    Raises InvalidInput where several teachers split text otherwise than the student, or hardly a token has an equal.
    """
    if student is None or None in teachers:
        return "tokenizers are compared when the models are here"
    prompts = [prompt.text for prompt in islice(source_prompts(recipe), SHOWN)]
    for teacher in teachers:
        assert teacher is not None
        with opened_tokens(teacher) as theirs, opened_tokens(student) as mine:
            found = _difference(theirs, mine, prompts)
            if found is None:
                continue
            if len(teachers) > 1:
                raise InvalidInput(
                    f"{recipe.path}: train.loss = '{recipe.train.loss}': of several teachers, each must split text as "
                    f"the student does ({found})",
                    "Name one teacher, write train.loss = 'hard', or choose a student with their tokenizer.",
                )
            share = _equal_share(theirs, mine, _answers(recipe) or prompts)
            warning = require_aligned(share)
            return f"another tokenizer ({found}), aligned by bytes{f': {warning}' if warning else ''}"
    return "one tokenizer"


def _difference(theirs: Tokens, mine: Tokens, prompts: Iterable[str]) -> Difference | None:
    return difference(theirs.ids, mine.ids, probe_texts(mine.template, prompts))


def _equal_share(theirs: Tokens, mine: Tokens, texts: Iterable[str]) -> float:
    """The share of the student's tokens of some texts that stand for the same bytes as one of the teacher's there."""
    equal = count = 0
    for text in texts:
        spans, others = (_spans(tokens.pieces, tokens.ids(text)) for tokens in (mine, theirs))
        equal, count = equal + len(spans & others), count + len(spans)
    return equal / max(1, count)


def _spans(pieces: Sequence[bytes], ids: Sequence[int]) -> set[tuple[int, int]]:
    ends = list(accumulate((len(pieces[token]) for token in ids), initial=0))
    return set(pairwise(ends))


def _answers(recipe: Recipe) -> list[str]:
    """Right answers of the eval set, as a student writes them."""
    rows = chain.from_iterable(map(iter_prompts, recipe.files("evaluate").values()))
    return [answer_text(row.expected) for row in rows if row.expected is not None][:SHOWN]
