"""The teacher as a writer: requests in, answers out, each stored before it counts."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import EdgeDistillError, Stopped
from ..prompting import SynthesizeSettings
from ..recipe import TeachSettings
from ..records import Prompt, digest
from ..run import Progress, stop_if_asked
from ..store import Store
from ..teachers import Teacher, TeacherTask, ending, load_teacher

__all__ = ["Writer", "writing"]

TOKEN = 3  # characters of a text, at the fewest, that a token stands for on the mean
FRAME = 40  # tokens of an answer besides its texts


def writing(settings: SynthesizeSettings, teach: TeachSettings) -> TeachSettings:
    """How the teacher writes: as the recipe runs it, with a chance of its own."""
    changes = {
        "max_tokens": settings.at_once * settings.longest // TOKEN + FRAME,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "samples": 1,
        "targets": "none",
        "answers": None,
    }
    return teach.model_copy(update=changes)


class Writer:
    """Asks requests that have no answer in the store, all at a time; the teacher is loaded by the first of them."""

    def __init__(self, task: TeacherTask, how: TeachSettings, seed: int, store: Store) -> None:
        shown = [message.as_dict() for message in task.preamble]
        chance = {"max_tokens": how.max_tokens, "temperature": how.temperature, "top_p": how.top_p, "seed": seed}
        self._identity = digest("synthesize", task.settings.backend, task.sha256, shown, task.schema, chance)
        self._task, self._how, self._seed, self._store = task, how, seed, store
        self._teacher: Teacher | None = None
        self.asked = 0
        """Requests that the teacher was asked, and not the store."""

    def ask(self, requests: Sequence[Prompt], progress: Progress) -> dict[str, str]:
        """The answer to each request, by its id; none for one that the teacher gave none to.

        Raises EdgeDistillError where it gave none to any.
        """
        keys = {request.id: digest(self._identity, request.text) for request in requests}
        held = self._store.held(list(keys.values()))
        todo = [request for request in requests if keys[request.id] not in held]
        if todo:
            self._write(todo, keys, progress)
        found = self._store.find(list(keys.values()))
        return {name: found[key].text for name, key in keys.items() if key in found}

    def _write(self, todo: Sequence[Prompt], keys: dict[str, str], progress: Progress) -> None:
        if self._teacher is None:
            self._teacher = load_teacher(self._task)
        done = 0
        try:
            with ending(self._teacher.complete(todo, self._how, self._seed)) as answers:
                for completion in answers:
                    self._store.add(keys[completion.prompt_id], completion)
                    done += 1
                    self.asked += 1
                    progress("", done, len(todo))
                    stop_if_asked()
        except EdgeDistillError as error:  # a server that refused some has answered the others
            if isinstance(error, Stopped) or not done or not getattr(self._teacher, "failures", None):
                raise

    def close(self) -> None:
        """Give back the memory of the weights."""
        if self._teacher is not None:
            self._teacher.close()
