"""Labels that the rest of the rows speak against: what a cheap classifier, taught on the others, would have said.

The rows are dealt into folds by their ids. A classifier (softmax regression on hashed words and pairs of words) learns
from all folds but one and says how probable each label of that one is (Brodley and Friedl, Identifying Mislabeled
Training Data, 1999). Of a JSON object each field is a label of its own. A row is suspicious where the likeliest labels
are together so many times as probable as those that it has.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..chat import json_instance
from ..similarity import normalised

__all__ = ["LabelNoise", "Suspect", "labels_of"]

FOLDS = 5
FEATURES = 1 << 15
LONGEST = 256  # features of a text
FEWEST_ROWS = 10  # with a label, for it to be learnt; the others are one label together
MOST_LABELS = 64  # of a field, for it to be one that has labels
BATCH, STEP, EPSILON = 64, 0.2, 1e-6
ROWS_LEARNT = 200_000  # in all epochs together, within these bounds
EPOCHS = (3, 20)
OTHER = "any other"

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row whose labels are suspicious: its number, and of the label that weighs most, what is likelier."""

    row: int
    times: float
    """How many times as probable as its labels the likeliest ones are."""
    field: str
    label: str
    instead: str
    label_share: float
    instead_share: float


def labels_of(answer: str) -> dict[str, str]:
    """The labels in an answer: of a JSON object one a field, else the whole text under "".

    >>> labels_of('{"action": "on", "value": 2}'), labels_of(" yes ")
    ({'action': '"on"', 'value': '2'}, {'': 'yes'})
    """
    value = json_instance(answer)
    if not isinstance(value, dict):
        return {"": answer.strip()}
    return {name: json.dumps(one, ensure_ascii=False, sort_keys=True) for name, one in value.items()}


class LabelNoise:
    """Takes rows in their order, then ranks the suspicious ones. Half a kilobyte a row at most is kept of its text."""

    def __init__(self, times: float) -> None:
        self._times = times
        self._features, self._sizes, self._folds = array("H"), array("l"), array("b")
        self._labels: list[dict[str, str]] = []
        self._names: dict[str, str] = {}

    def add(self, identity: str, text: str, labels: dict[str, str]) -> None:
        """Take in a row; rows with the same id are in the same fold."""
        found = _features(text)
        self._features.extend(found)
        self._sizes.append(len(found))
        self._folds.append(int(hashlib.sha256(identity.encode()).hexdigest()[8:16], 16) % FOLDS)
        one = self._names.setdefault  # the same label is kept once
        self._labels.append({one(name, name): one(label, label) for name, label in labels.items()})

    def fields(self) -> dict[str, list[str]]:
        """The fields that have labels, each with those that enough rows have."""
        counts: dict[str, Counter[str]] = {}
        for labels in self._labels:
            for name, label in labels.items():
                counts.setdefault(name, Counter())[label] += 1
        found = {}
        for name, counted in counts.items():
            often = sorted(label for label, count in counted.items() if count >= FEWEST_ROWS)
            learnt = sum(counted[label] for label in often)
            if 2 <= len(often) <= MOST_LABELS and 2 * learnt >= len(self._labels):
                found[name] = often
        return found

    def ranked(self) -> list[Suspect]:
        """The suspicious rows, the most suspicious first; none where no field has labels (see `fields`)."""
        fields = [(name, (*labels, OTHER)) for name, labels in self.fields().items()]
        if not fields:
            return []
        texts = _Texts(self._features, self._sizes)
        given = np.array([[_place(one.get(name), labels) for name, labels in fields] for one in self._labels])
        widths = [len(labels) for _, labels in fields]
        shares = np.split(self._out_of_fold(texts, given, widths), np.cumsum(widths)[:-1], axis=1)
        rows = np.arange(len(given))
        best = np.column_stack([part.argmax(axis=1) for part in shares])
        likeliest, own = (
            np.column_stack([np.maximum(part[rows, which[:, number]], EPSILON) for number, part in enumerate(shares)])
            for which in (best, given)
        )
        doubts = np.log(likeliest) - np.log(own)
        total = doubts.sum(axis=1)
        worst = doubts.argmax(axis=1)
        found = []
        for row in np.argsort(-total, kind="stable")[: np.count_nonzero(total >= np.log(self._times))].tolist():
            number = worst[row]
            name, labels = fields[number]
            pair = labels[given[row, number]], labels[best[row, number]]
            odds = float(own[row, number]), float(likeliest[row, number])
            found.append(Suspect(row, float(np.exp(total[row])), name, *pair, *odds))
        return found

    def _out_of_fold(self, texts: _Texts, given: Indices, widths: list[int]) -> Floats:
        """The probability of each label of each row, by a classifier that has not seen it: (rows, all labels)."""
        folds = np.array(self._folds)
        shares = np.zeros((len(folds), sum(widths)), dtype=np.float32)
        for fold in range(FOLDS):
            learnt, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            if len(learnt) and len(left):
                weights = _taught(texts, learnt, given, widths)
                for rows in _batches(left):
                    shares[rows] = _softmax(texts.of(rows).scores(weights), widths)
        return shares


class _Texts:
    """The features of all texts, each text's behind another's."""

    def __init__(self, features: array[int], sizes: array[int]) -> None:
        self._features = np.array(features, dtype=np.int64) if len(features) else np.zeros(0, np.int64)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def of(self, rows: Indices) -> _Batch:
        sizes = self._sizes[rows]
        begins = np.cumsum(sizes) - sizes
        places = np.arange(sizes.sum()) + np.repeat(self._starts[rows] - begins, sizes)
        return _Batch(self._features[places], begins, sizes)


class _Batch:
    """Some texts. A text is the mean of its features, scaled to length 1."""

    def __init__(self, features: Indices, begins: Indices, sizes: Indices) -> None:
        self._features, self._begins = features, begins
        self._scale = (1 / np.sqrt(sizes)).astype(np.float32)[:, None]
        owners = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort(features, kind="stable")
        self._owners = owners[order]
        self._touched, self._firsts = np.unique(features[order], return_index=True)

    def scores(self, weights: Floats) -> Floats:
        found: Floats = np.add.reduceat(weights[self._features], self._begins, axis=0) * self._scale
        return found

    def learn(self, weights: Floats, squares: Floats, errors: Floats) -> None:
        """One step of AdaGrad (Duchi et al., 2011) by the errors of the scores."""
        slopes = np.add.reduceat((errors * self._scale)[self._owners], self._firsts, axis=0)
        squares[self._touched] += slopes * slopes
        weights[self._touched] -= STEP * slopes / np.sqrt(squares[self._touched] + EPSILON)


def _taught(texts: _Texts, rows: Indices, given: Indices, widths: list[int]) -> Floats:
    """The weights of a classifier that learnt from these rows: (features, all labels)."""
    weights, squares = (np.zeros((FEATURES, sum(widths)), dtype=np.float32) for _ in range(2))
    starts = np.cumsum([0, *widths[:-1]])
    source = np.random.default_rng(0)
    for _ in range(min(max(ROWS_LEARNT // len(rows), EPOCHS[0]), EPOCHS[1])):
        for part in _batches(source.permutation(rows)):
            batch = texts.of(part)
            errors = _softmax(batch.scores(weights), widths)
            errors[np.arange(len(part))[:, None], starts + given[part]] -= 1
            batch.learn(weights, squares, errors)
    return weights


def _batches(rows: Indices) -> Iterator[Indices]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def _softmax(scores: Floats, widths: list[int]) -> Floats:
    """Probabilities, field by field."""
    stops = np.cumsum(widths)
    for start, stop in zip(stops - widths, stops, strict=True):
        part = scores[:, start:stop]
        np.exp(part - part.max(axis=1, keepdims=True), out=part)
        part /= part.sum(axis=1, keepdims=True)
    return scores


def _place(label: str | None, labels: tuple[str, ...]) -> int:
    return labels.index(label) if label in labels else len(labels) - 1


def _features(text: str) -> array[int]:
    """The hashed words and pairs of words of a text, each once, and one that every text has."""
    words = normalised(text).split()[:LONGEST]
    pairs = (f"{one} {other}" for one, other in pairwise(words))
    found = {zlib.crc32(part.encode("utf-8", "surrogatepass")) % FEATURES for part in ("", *words, *pairs)}
    return array("H", sorted(found)[:LONGEST])
