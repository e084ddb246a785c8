"""Round by round: which requests are made, what is kept of the answers, and when there are enough."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from ..prompting import SynthesizeSettings
from ..records import Prompt, Tool, digest, user_prompt
from .requests import EDGES, WAYS, Request, Text, kind_of, texts_in, topics_in, topics_request
from .screen import Screen, triples

__all__ = ["Growth", "Written"]

ROUND = 48  # requests at a time: few enough that the next ones know what came of them
FEWEST = 8  # otherwise a third of those that are still needed
WINDOW = 120  # texts whose news decide whether it is worth going on
LEAST_NEW = 0.1  # of all word triples of the window, those that no prompt before had
DRY = 4  # requests without anything kept, after which a cell is left as it is
LEAST_RATE = 0.2  # of the texts that are kept, where fewer were: no more requests are made at a time

Ask = Callable[[Sequence[Prompt]], Mapping[str, str]]


@dataclass(frozen=True)
class Written:
    """A text of the teacher's: kept, or dropped for a reason."""

    prompt: Prompt
    request: Request
    reason: str = ""


@dataclass
class _Cell:
    """A combination of values: what there is of it, and what has been tried."""

    values: Mapping[str, str]
    target: int
    topics: list[tuple[str, ...]] = field(default_factory=list)
    kept: list[Text] = field(default_factory=list)
    dry: int = 0
    used: Counter[Any] = field(default_factory=Counter)
    """How often each topic and each parent was named."""

    @property
    def is_open(self) -> bool:
        return len(self.kept) < self.target and self.dry < DRY


class Growth:
    """Prompts as they are made. What is asked follows from settings, seed and the answers before, and nothing else."""

    def __init__(
        self,
        settings: SynthesizeSettings,
        seeds: Sequence[Prompt],
        seed: int,
        screen: Screen,
        tools: tuple[Tool, ...] = (),
    ) -> None:
        """`tools` are what every prompt that is written offers."""
        self._settings, self._seed, self._screen, self._tools = settings, seed, screen, tools
        self._seeds = [Text(prompt.id, prompt.text) for prompt in seeds]
        combinations = settings.combinations()
        edges = round(settings.edge * settings.count)
        target = ceil((settings.count - edges) / len(combinations))
        self._cells = [_Cell(values, target) for values in combinations]
        self._edges = [_Cell({"edge": kind}, ceil(edges / len(EDGES))) for kind in EDGES] if edges else []
        self._used: Counter[Any] = Counter()
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self.requests = self.written = self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.stopped = ""
        """Why it ended: enough, nothing new, or cells dry."""

    def rounds(self, ask: Ask) -> Iterator[list[Written]]:
        """All texts of the teacher, round by round, until there are enough or none that say anything new."""
        self._think_of_topics(ask)
        while not self.stopped:
            requests = self._planned()
            if not requests:
                self.stopped = "cells are dry"
                return
            asked = [request.prompt(self._settings) for request in requests]
            answers = ask(asked)
            yield self._taken(requests, [texts_in(answers.get(one.id, "")) for one in asked])
            if self.kept >= self._settings.count:
                self.stopped = "enough"
            elif self._says_nothing_new():
                self.stopped = "nothing new"

    def cells(self) -> dict[str, int]:
        """How many prompts each combination has, and each kind of edge case."""
        return {", ".join(cell.values.values()) or "all": len(cell.kept) for cell in (*self._cells, *self._edges)}

    def unfilled(self) -> list[str]:
        """Combinations with less than half of their share."""
        return [", ".join(cell.values.values()) for cell in self._cells if 2 * len(cell.kept) < cell.target]

    def _think_of_topics(self, ask: Ask) -> None:
        """Topics of every cell; where these are few for so many prompts, topics inside each of them too."""
        settings = self._settings
        if not settings.topics or "topic" in settings.axes:
            return
        first = [topics_request(settings.topics, kind_of(settings, cell.values)) for cell in self._cells]
        answers = ask(first)
        for cell, request in zip(self._cells, first, strict=True):
            cell.topics = [(topic,) for topic in topics_in(answers.get(request.id, ""))[: settings.topics]]
        if len(self._cells) * settings.topics * settings.at_once * 2 >= settings.count:
            return
        inner = [
            (cell, topic, topics_request(settings.topics, kind_of(settings, cell.values), topic[0]))
            for cell in self._cells
            for topic in cell.topics
        ]
        answers = ask([request for _, _, request in inner])
        for cell in self._cells:
            cell.topics = []
        for cell, topic, request in inner:
            leaves = topics_in(answers.get(request.id, ""))[: settings.topics]
            cell.topics += [(*topic, leaf) for leaf in leaves] or [topic]

    def _planned(self) -> list[Request]:
        """The requests of the next round: those of the emptiest cells first."""
        rate = max(LEAST_RATE, self.kept / self.written if self.written else 1.0)
        each = self._settings.at_once * rate
        missing = self._settings.count - self.kept
        pending: Counter[int] = Counter()
        requests = []
        for _ in range(min(ROUND, max(FEWEST, ceil(missing / each / 3)))):
            room = [
                (1 - (len(cell.kept) + each * pending[number]) / cell.target, -number)
                for number, cell in enumerate([*self._cells, *self._edges])
                if cell.is_open
            ]
            if not room:
                break
            number = -max(room)[1]
            pending[number] += 1
            requests.append(self._request([*self._cells, *self._edges][number]))
        return requests

    def _request(self, cell: _Cell) -> Request:
        self.requests += 1
        number, settings = self.requests, self._settings
        chance = random.Random(int(digest(self._seed, number)[:16], 16))
        others = {
            name: self._least_used(self._used, [(name, value) for value in values], chance)[1]
            for name, values in settings.axes.items()
            if name not in settings.cell_axes
        }
        if "edge" in cell.values and cell in self._edges:
            return Request(number, settings.at_once, cell.values["edge"], {}, others)
        topic = self._least_used(cell.used, cell.topics, chance) if cell.topics else ()
        parents = cell.kept or self._seeds
        if not parents or self._used["evolved"] >= settings.evolve * number:
            return Request(number, settings.at_once, "new", cell.values, others, topic)
        self._used["evolved"] += 1
        way = self._least_used(self._used, list(WAYS), chance)
        parent = self._least_used(cell.used, parents, chance)
        return Request(number, settings.at_once, way, cell.values, others, parent=parent)

    @staticmethod
    def _least_used(used: Counter[Any], choices: Sequence[Any], chance: random.Random) -> Any:
        """One of those that were named the least, which is then counted."""
        least = min(used[choice] for choice in choices)
        chosen = chance.choice([choice for choice in choices if used[choice] == least])
        used[chosen] += 1
        return chosen

    def _taken(self, requests: Sequence[Request], answers: Sequence[Sequence[str]]) -> list[Written]:
        """What is kept of a round's answers."""
        made = [
            Written(user_prompt(text, self._tools), request)
            for request, texts in zip(requests, answers, strict=True)
            for text in texts[: request.count]
        ]
        verdicts = self._screen.judge([(one.prompt.id, one.prompt.text) for one in made])
        gained: dict[int, int] = defaultdict(int)
        found = []
        for one, (reason, new) in zip(made, verdicts, strict=True):
            self.written += 1
            size = len(triples(one.prompt.text))
            self._window.append((0 if reason else round(size * new), size))
            if not reason and self.kept >= self._settings.count:
                reason = "enough"
            if reason:
                self.dropped[reason] += 1
            else:
                self.kept += 1
                gained[one.request.number] += 1
                self._cell_of(one.request).kept.append(Text(one.prompt.id, one.prompt.text))
            found.append(Written(one.prompt, one.request, reason))
        for request in requests:
            cell = self._cell_of(request)
            cell.dry = 0 if gained[request.number] else cell.dry + 1
        return found

    def _cell_of(self, request: Request) -> _Cell:
        if request.way in EDGES:
            return next(cell for cell in self._edges if cell.values["edge"] == request.way)
        return next(cell for cell in self._cells if cell.values == request.cell)

    def _says_nothing_new(self) -> bool:
        total = sum(size for _, size in self._window)
        new = sum(count for count, _ in self._window)
        return len(self._window) == WINDOW and new < LEAST_NEW * total
