"""What each curated row teaches the student: its text, the teacher's distribution, or the odds of every answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..chat import with_system
from ..errors import InvalidInput
from ..recipe import Recipe, TrainSettings
from ..records import Example, Message, Tool, digest, messages_of, placed_lines, read_rows, tools_of
from ..run import Run, file_sha256
from ..schema import kept_answers, load_schema
from ..store import Store
from ..students.alignment import Aligner
from ..students.encode import EncodedExample, Encoder, joined
from ..students.lessons import Lesson, aligned_lesson, answers_lesson, cooled, hard_lesson, text_lesson
from ..students.packed import PackedExamples, packed
from ..targets import Targets, decode
from ..teachers import BACKENDS
from .stored_answers import STORE
from .traces import fenced

__all__ = ["SampledRow", "TaughtRows", "require_taught"]

SHORT = 32  # tokens; a row of a sample is taken to have as many at least
ALIGNED = 500  # rows that tell the share of aligned tokens
PACKING = 5  # raised where the same rows would be encoded otherwise


def require_taught(recipe: Recipe) -> str:
    """What the student learns from, as found; raise InvalidInput where the loss needs what no teacher will tell."""
    settings, where = recipe.train, f"{recipe.path}: train.loss = '{recipe.train.loss}'"
    if settings.loss == "hard":
        return "hard: the teacher's text"
    how = f"{settings.loss}, {settings.divergence}"
    if kept_answers(load_schema(recipe), recipe.teach) is not None:
        if settings.divergence != "forward_kl" or settings.temperature != 1.0:
            raise InvalidInput(
                f"{where}: the odds of closed answers are learned by 'forward_kl' at temperature 1",
                "Leave train.divergence and train.temperature out; train.answer_temperature softens the odds.",
            )
        mute = [teacher.backend for teacher in recipe.teachers if not BACKENDS[teacher.backend].scores]
        if mute:
            raise InvalidInput(
                f"{where} needs the odds of every answer, which the '{mute[0]}' backend does not tell",
                'Write loss = "hard", or choose another backend for this teacher.',
            )
        return f"{settings.loss}: the odds of every answer"
    if recipe.teach.targets == "none":
        raise InvalidInput(
            f"{where} needs the teacher's distribution, and teach.targets is 'none'",
            'Write targets = "top_k" in [teach], or loss = "hard".',
        )
    if recipe.teach.targets == "sampled" and (settings.divergence != "forward_kl" or settings.temperature != 1.0):
        raise InvalidInput(
            f"{where}: drawn tokens (teach.targets = 'sampled') are unbiased for 'forward_kl' at temperature 1 alone",
            'Write targets = "top_k" in [teach], or leave train.divergence and train.temperature out.',
        )
    return f"{how}: the teacher's {recipe.teach.targets} distributions"


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A curated row: its messages without any system text, and its token ids as the student sees them."""

    messages: tuple[Message, ...]
    example: EncodedExample
    tools: tuple[Tool, ...] = ()


class TaughtRows:
    """The curated rows of a run as the recipe's loss needs them. Use it as a context manager.

    With an `aligner`, the teacher has another tokenizer than the student.
    """

    def __init__(self, recipe: Recipe, run: Run, encoder: Encoder, aligner: Aligner | None = None) -> None:
        self._settings = recipe.train
        self._system, self._thinking = recipe.student.system, recipe.student.thinking
        self._encoder = encoder
        self._rows = run.folder("curate")
        self._scratch = run.scratch / "tokens"
        has_targets = recipe.train.loss != "hard" and recipe.teach.targets != "none"
        self._store = Store(run.folder("teach") / STORE, read_only=True) if has_targets else None
        self._aligner = aligner
        self._end = encoder.completion("")[-1]
        self._others = frozenset(encoder.special_tokens()) - {self._end}
        self._answers = _AnswerTokens(encoder)

    def __enter__(self) -> TaughtRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

    def examples(self, name: str) -> PackedExamples:
        """The rows of `train` or `valid` as token ids, behind the student's system text, in files of the run.

        Raises InvalidInput that names a row longer than `train.max_length`: a cut row would teach a cut answer.
        """
        path, settings = self._rows / f"{name}.jsonl", self._settings
        taught = settings.model_dump(include={"max_length", "loss", "ce_weight", "answer_temperature", "answer_floor"})
        key = digest(
            PACKING,
            file_sha256(path),
            self._encoder.identity,
            self._system,
            taught,
            self._store is None,
            self._aligner is None,
        )
        return packed(self._scratch / path.stem / key[:16], self._encoded(path))

    def sample(self, name: str, tokens: int) -> list[SampledRow]:
        """Some rows of `train` or `valid` from all over the file, of about so many tokens together at most.

        Of a row with several turns of the assistant, the last one is the example.
        """
        path = self._rows / f"{name}.jsonl"
        every = max(1, -(-sum(1 for _ in placed_lines(path)) * SHORT // tokens))
        rows = self._turns(path, every)
        found = [SampledRow(row.messages, self._fitting(path, turns[-1]), row.tools) for row, turns in rows]
        wanted = sum(len(row.example.tokens) for row in found) / tokens
        if wanted <= 1:
            return found
        return [found[int(place * wanted)] for place in range(int(len(found) / wanted))]

    def lesson(self, example: EncodedExample) -> Lesson:
        """What an encoded row teaches."""
        if example.answers:
            return answers_lesson(example.id, example.tokens[: example.start], dict(example.answers))
        if not example.key:
            return hard_lesson(example)
        ce_weight = self._settings.ce_weight if self._settings.loss == "mixed" else 0.0
        targets = self.targets(example.key)
        if targets is not None and self._aligner is not None:
            aligned = self._aligner.align(targets, example.tokens[example.start :])
            return aligned_lesson(example.id, example.tokens, example.start, aligned, ce_weight)
        return text_lesson(example.id, example.tokens, example.start, targets, ce_weight)

    def aligned_share(self, examples: Sequence[EncodedExample]) -> float | None:
        """The mean share of the tokens of some examples that have the teacher's distribution; None where all have."""
        if self._aligner is None:
            return None
        some = [examples[index] for index in range(0, len(examples), max(1, len(examples) // ALIGNED))]
        keyed = ((example, self.targets(example.key)) for example in some if example.key)
        shares = [
            self._aligner.align(targets, example.tokens[example.start :]).share
            for example, targets in keyed
            if targets is not None
        ]
        return sum(shares) / len(shares) if shares else None

    def targets(self, key: str) -> Targets | None:
        """The teacher's distributions at a row's tokens, or None where none are kept."""
        found = self._store.get(key) if self._store is not None else None
        if found is None or found.targets is None:
            return None
        targets = decode(found.targets)
        # a teacher may end its turn by a token with which the student does not: that one is learned by the text
        is_other = self._aligner is None and len(targets.tokens) > 0 and int(targets.tokens[-1]) in self._others
        return _without_last(targets) if is_other else targets

    def _encoded(self, path: Path) -> Iterator[EncodedExample]:
        """The examples of a file: each of the assistant's turns is learned once."""
        for _, turns in self._turns(path):
            yield from (self._fitting(path, example) for example in joined(turns))

    def _fitting(self, path: Path, example: EncodedExample) -> EncodedExample:
        longest = self._settings.max_length
        if len(example.tokens) > longest:
            raise InvalidInput(
                f"{path}: row {example.id} has {len(example.tokens)} tokens, train.max_length is {longest}",
                "Raise train.max_length or drop the row.",
            )
        return example

    def _turns(self, path: Path, every: int = 1) -> Iterator[tuple[Example, list[EncodedExample]]]:
        """Each row of a file, without any system text, and the turns of the assistant in it."""
        for number, row in read_rows(path):
            if (number - 1) % every:
                continue
            where, taught = f"{path}:{number}", row.get("_ed", {})
            messages = messages_of(where, row)
            if self._thinking is False:
                messages = tuple(replace(message, reasoning="") for message in messages)
            shown = messages if self._encoder.writes_reasoning else fenced(messages)
            said = Example(str(taught.get("id", number)), shown, tools_of(where, row.get("tools")))
            turns = self._encoder.turns(replace(said, messages=with_system(self._system, said.messages)))
            if self._settings.loss != "hard" and "answers" in taught:
                turns[-1] = self._with_answers(turns[-1], said.messages[-1].content, taught["answers"])
            elif self._store is not None:
                keys = taught.get("keys") or [*[None] * (len(turns) - 1), taught.get("key")]
                keyed = zip(turns, keys, strict=True)
                turns = [turn if key is None else self._with_targets(turn, key) for turn, key in keyed]
            yield said, turns

    def _with_answers(self, example: EncodedExample, text: str, shares: dict[str, float]) -> EncodedExample:
        answers = self._answers.of(example, text, tuple(shares))
        softened = learned_shares(list(shares.values()), list(shares).index(text), self._settings)
        kept = tuple((tokens, share) for tokens, share in zip(answers, softened, strict=True) if share > 0)
        return replace(example, answers=kept)

    def _with_targets(self, example: EncodedExample, key: str) -> EncodedExample:
        """The row in the teacher's own tokens, as a text has several spellings, and the token that ends it.

        With another tokenizer, in the student's. A row without a distribution stays as it is.
        """
        targets = self.targets(key)
        if targets is None:
            return example
        if self._aligner is not None:
            return replace(example, key=key)
        written = tuple(targets.tokens.tolist())
        ended = written if written[-1:] == (self._end,) else (*written, self._end)
        return replace(example, tokens=example.tokens[: example.start] + ended, key=key)


def learned_shares(shares: list[float], best: int, settings: TrainSettings) -> list[float]:
    """The probabilities that a student learns for a row's answers, of which the one at `best` is its text.

    They are cooled, small ones are left out, and for a mixed loss `ce_weight` of all goes to the text: cross entropy
    is linear in what it learns from.

    >>> settings = TrainSettings(loss="mixed", ce_weight=0.5, answer_floor=0.1)
    >>> [round(share, 6) for share in learned_shares([0.75, 0.25, 0.0], 0, settings)]
    [0.875, 0.125, 0.0]
    """
    kept = cooled(shares, settings.answer_temperature, settings.answer_floor).tolist()
    text = settings.ce_weight if settings.loss == "mixed" else 0.0
    return [(1 - text) * share + text * (place == best) for place, share in enumerate(kept)]


def _without_last(targets: Targets) -> Targets:
    count = targets.offsets[-2]
    return Targets(
        profile=targets.profile,
        tokens=targets.tokens[:-1],
        offsets=targets.offsets[:-1],
        ids=targets.ids[:count],
        logprobs=targets.logprobs[:count],
        tail=targets.tail[:-1],
    )


class _AnswerTokens:
    """Answers as token ids, each encoded once for all rows."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, example: EncodedExample, text: str, answers: tuple[str, ...]) -> list[tuple[int, ...]]:
        """The tokens of each answer in place of `text`, which the example's own completion spells."""
        self._known.setdefault(text, example.tokens[example.start :])
        for answer in answers:
            if answer not in self._known:
                self._known[answer] = self._encoder.completion(answer)
        return [self._known[answer] for answer in answers]
