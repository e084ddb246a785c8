"""One training under way in MLX: compiled steps, on few shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from ..recipe import TrainSettings
from . import Estimate, Exam
from .chunks import Chunks
from .divergence import Divergence
from .lessons import NO_TAIL, Batch, Lesson, Rows, collated, paths
from .mlx_adapter import Keys, adapted, recomputed, save_tensors, trained, write_adapter
from .mlx_chunks import chunk_arrays, with_chunks
from .mlx_head import Head, HeadRows, head_loss, head_value
from .mlx_memory import StepCost, free_bytes, step_cost, used_bytes
from .mlx_model import Beside, Opening, body_of, compute_dtype, head_of, takes_layouts
from .training import ROOM, Loss, fitting

__all__ = ["MlxSession", "rounded_up"]

CLIP, CLIP_EPS = 1.0, 1e-6  # as torch.nn.utils.clip_grad_norm_
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # as torch.optim.AdamW
SHARED = 4  # what all texts of a batch begin with is computed once in multiples of so many tokens: few shapes
CLEARED = 64  # steps between two times that freed memory goes back to the system

Weights = dict[str, mx.array]
Arrays = dict[str, Any]


class MlxSession:
    """Model, optimizer, and how many steps they took: dropout draws from seed and step, so that is all there is."""

    def __init__(self, model: Any, settings: TrainSettings, seed: int) -> None:
        self._model, self._settings, self._seed = model, settings, seed
        self._keys = Keys()
        self._rows, self._recomputes = settings.micro_batch, settings.gradient_checkpointing == "on"
        self._how = Divergence(settings.divergence, settings.beta, settings.temperature)
        self._takes_layouts = takes_layouts(model)
        self._is_packed = settings.packing and self._takes_layouts
        if settings.method == "full":
            model.set_dtype(mx.float32)  # what learns stays in float32, whatever is computed in
            model.unfreeze()
        else:
            adapted(model, settings, seed, self._keys)
        self._weights: Weights = trained(model)
        self._moments = {kind: {name: mx.zeros_like(w) for name, w in self._weights.items()} for kind in "mv"}
        self._steps, self._used, self._cells = 0, 0, 0
        self._gradient = mx.compile(self._traced_gradient)
        self._value = mx.compile(self._traced_value)
        self._update = mx.compile(self._traced_update)
        mx.eval(model.parameters(), self._moments)  # what is not computed yet would be anew at each step

    @property
    def size(self) -> int:
        """How many numbers learn."""
        return sum(weight.size for weight in self._weights.values())

    @property
    def padded_share(self) -> float:
        """Share of the cells computed so far that held no token."""
        return 1 - self._used / self._cells if self._cells else 0.0

    def settle(self, largest: Sequence[Lesson], settled: dict[str, Any] | None) -> tuple[dict[str, Any], Estimate]:
        """See `training.Session`: fewer texts at once, then activations computed twice, until a step fits."""
        settings, length = self._settings, max(map(len, largest))
        mx.clear_cache()  # of what loading has left: the trial and the steps take their memory from there
        loaded, room = used_bytes(), free_bytes() * ROOM
        cost = step_cost(self._tried, self._weights, largest[0])
        if settled is None:
            settled = fitting(settings, settings.batch_size, lambda rows: self._bytes(cost, rows, length), room)
        if settled["recomputed"] and not self._recomputes:
            self._recomputes = True
            self._gradient = mx.compile(self._traced_gradient)
            cost = step_cost(self._tried, self._weights, largest[0])
        self._rows = settled["micro_batch"]
        seconds = cost.seconds_per_token * sum(map(len, largest))
        return settled, Estimate(loaded + self._bytes(cost, self._rows, length), seconds)

    def _bytes(self, cost: StepCost, rows: int, length: int) -> int:
        return cost.bytes(1, rows * length) if self._is_packed else cost.bytes(rows, length)

    def _tried(self, lesson: Lesson) -> None:
        """Compute a gradient and forget it."""
        for arrays in self._arrays([lesson], counted=False):
            arrays["key"] = Keys.of(0)
            mx.eval(self._gradient(self._weights, arrays, mx.array(1.0)))

    def step(self, batch: Sequence[Lesson], learning_rate: float) -> tuple[Loss, float]:
        """Take one optimizer step on the batch; return its loss before the step, and the gradient's norm."""
        weight = sum(lesson.weight for lesson in batch)
        total, gradients = 0.0, None
        for number, arrays in enumerate(self._arrays(batch)):
            arrays["key"] = Keys.of(self._seed, self._steps, number)
            part, found = self._gradient(self._weights, arrays, mx.array(1.0 / weight))
            gradients = found if gradients is None else {name: gradients[name] + found[name] for name in found}
            mx.eval(part, gradients)
            total += part.item()
        self._steps += 1
        numbers = (learning_rate, 1 - BETA1**self._steps, (1 - BETA2**self._steps) ** 0.5)
        self._weights, self._moments, norm = self._update(
            self._weights, self._moments, gradients, [mx.array(number) for number in numbers]
        )
        mx.eval(self._weights, self._moments, norm)
        if self._steps % CLEARED == 0:
            mx.clear_cache()
        return Loss(total / weight, weight), norm.item()

    def loss(self, batch: Sequence[Lesson]) -> Loss:
        """The loss of the batch, without learning from it."""
        weight = sum(lesson.weight for lesson in batch)
        total = sum(self._value(self._weights, arrays).item() for arrays in self._arrays(batch, counted=False))
        return Loss(total / weight, weight)

    def complete(self, exam: Exam) -> list[list[int]]:
        """Greedy answers to the exam's prompts, as token ids without the end token."""
        self._keys.now = None
        self._model.update(tree_unflatten(list(self._weights.items())))
        found = []
        for prompt in exam.prompts:
            cache, answer, given = make_prompt_cache(self._model), list[int](), list(prompt)
            while len(answer) < exam.longest:
                token = self._model(mx.array([given]), cache=cache)[0, -1].argmax().item()
                if token == exam.end:
                    break
                answer.append(token)
                given = [token]
            found.append(answer)
        return found

    def write(self, folder: Path) -> None:
        """Write weights, moments and counts into the folder."""
        counts = mx.array([self._steps, self._used, self._cells], mx.int64)
        moments = {f"{name}/{kind}": value for kind, named in self._moments.items() for name, value in named.items()}
        save_tensors(folder / "weights.safetensors", self._weights)
        save_tensors(folder / "optimizer.safetensors", {**moments, "counts": counts})

    def read(self, folder: Path) -> None:
        """Go on from what `write` wrote."""
        saved = mx.load(str(folder / "optimizer.safetensors"))
        self._steps, self._used, self._cells = saved.pop("counts").tolist()
        weights = mx.load(str(folder / "weights.safetensors"))
        self._weights = {name: weights[name] for name in self._weights}  # the norm is summed in this order
        self._moments = {kind: {name: saved[f"{name}/{kind}"] for name in self._weights} for kind in "mv"}
        mx.eval(self._weights, self._moments)  # now: the files may go

    def save_adapter(self, folder: Path) -> None:
        """Write what was learned, as mlx-lm does."""
        write_adapter(folder, self._model, self._weights, self._settings)

    def _arrays(self, batch: Sequence[Lesson], counted: bool = True) -> Iterator[Arrays]:
        """The batch's micro-batches, in shapes that come again."""
        chains = sorted((path for lesson in batch for path in paths(lesson)), key=len)
        size = self._rows or self._settings.batch_size
        for start in range(0, len(chains), size):
            part = chains[start : start + size]
            longest = sum(map(len, part)) if self._is_packed else len(part[-1])
            found = collated(part, rounded_up(longest), self._is_packed)
            tokens, visible = _widened(found, rounded_up(longest)) if self._is_packed else (found.tokens, None)
            if counted:
                self._used, self._cells = self._used + found.used, self._cells + tokens.size
            rows = _padded(found.rows)
            shares = self._takes_layouts and not self._recomputes
            shared = found.shared // SHARED * SHARED if shares else 0
            yield {
                "opening": mx.array(tokens[:1, :shared]) if shared else None,
                "tokens": mx.array(tokens[:, shared:]),
                "visible": None if visible is None else mx.array(visible),
                "at": mx.array(rows.at),
                "rows": {name: getattr(HeadRows.of(rows), name) for name in HeadRows.__slots__},
                "chunks": None if found.chunks is None else _padded_chunks(found.chunks),
            }

    def _hidden(self, weights: Weights, arrays: Arrays) -> mx.array:
        """(R, H) The hidden state that each loss row predicts from.

        What all texts begin with, such as the chat template's header, is computed once; its gradient is the sum of
        theirs.
        """
        if self._settings.method == "full":
            weights = {name: weight.astype(compute_dtype()) for name, weight in weights.items()}
        self._model.update(tree_unflatten(list(weights.items())))
        body, layers, tokens = body_of(self._model), len(self._model.layers), arrays["tokens"]
        if arrays["opening"] is not None:
            openings = [Opening() for _ in range(layers)]
            first = body(arrays["opening"], cache=openings)
            first = mx.broadcast_to(first, (len(tokens), *first.shape[1:]))
            hidden = mx.concatenate([first, body(tokens, cache=openings)], axis=1)
        else:
            visible = arrays["visible"]
            hidden = body(tokens, cache=None if visible is None else [Beside(visible)] * layers)
        found: mx.array = hidden.reshape(-1, hidden.shape[-1])[arrays["at"]]
        return found

    def _traced_gradient(self, weights: Weights, arrays: Arrays, share: mx.array) -> tuple[mx.array, Weights]:
        def loss(weights: Weights) -> tuple[mx.array, mx.array]:
            self._keys.now = arrays["key"]
            with recomputed(self._model, self._keys) if self._recomputes else nullcontext():
                hidden = self._hidden(weights, arrays)
            head = head_of(self._model, learns=self._settings.method == "full")
            rows, beside = self._rows_of(hidden, head, arrays)
            total, _ = head_loss(hidden, head, rows, self._how)
            return total * share, total + beside

        (_, total), gradients = mx.value_and_grad(loss)(weights)
        return total, gradients

    def _traced_value(self, weights: Weights, arrays: Arrays) -> mx.array:
        self._keys.now = None
        hidden, head = self._hidden(weights, arrays), head_of(self._model)
        rows, beside = self._rows_of(hidden, head, arrays)
        return head_value(hidden, head, rows, self._how)[0] + beside

    def _rows_of(self, hidden: mx.array, head: Head, arrays: Arrays) -> tuple[HeadRows, mx.array]:
        """The loss rows, and what is to be added to their loss."""
        rows = HeadRows(**arrays["rows"])
        if arrays["chunks"] is None:
            return rows, mx.array(0.0)
        found: tuple[HeadRows, mx.array] = with_chunks(hidden, head, rows, arrays["chunks"], self._how)
        return found

    def _traced_update(
        self, weights: Weights, moments: dict[str, Weights], gradients: Weights, numbers: list[mx.array]
    ) -> tuple[Weights, dict[str, Weights], mx.array]:
        """AdamW (arXiv 1711.05101) as torch computes it, on a gradient clipped as torch clips it."""
        rate, correction1, correction2 = numbers
        norm = mx.sqrt(sum(mx.square(gradient).sum() for gradient in gradients.values()))
        clip = mx.minimum(CLIP / (norm + CLIP_EPS), 1.0)
        after: Weights = {}
        first: Weights = {}
        second: Weights = {}
        for name, weight in weights.items():
            gradient = gradients[name] * clip
            first[name] = BETA1 * moments["m"][name] + (1 - BETA1) * gradient
            second[name] = BETA2 * moments["v"][name] + (1 - BETA2) * mx.square(gradient)
            weight = weight * (1 - rate * self._settings.weight_decay)
            after[name] = weight - rate / correction1 * first[name] / (mx.sqrt(second[name]) / correction2 + EPS)
        return after, {"m": first, "v": second}, norm


def rounded_up(length: int, shapes: int = 32) -> int:
    """The length of the batch that takes one of this length: of all between two powers of 2, so many are used.

    A step is compiled once a shape. With 32 of them less than 1 cell of 64 is padding on average, and none up to 64.

    >>> [rounded_up(length) for length in (1, 45, 64, 65, 130, 1000)]
    [1, 45, 64, 66, 132, 1008]
    """
    grain = max(1, (1 << (length.bit_length() - 1)) // shapes)
    return -(-length // grain) * grain


def _padded(rows: Rows) -> Rows:
    """The rows with others behind them that weigh nothing, and a width of a power of 2."""
    height, width = rounded_up(len(rows), 8) - len(rows), rows.ids.shape[1]
    more = (1 << (width - 1).bit_length()) - width
    columns = {name: np.pad(getattr(rows, name), (0, height), "edge") for name in ("at", "token", "tail")}
    columns |= {name: np.pad(getattr(rows, name), (0, height)) for name in ("ce", "soft")}
    ids = np.concatenate([rows.ids, np.repeat(rows.ids[:, :1], more, 1)], axis=1)
    logprobs = np.pad(rows.logprobs, ((0, 0), (0, more)), constant_values=NO_TAIL)
    down = ((0, height), (0, 0))
    return replace(rows, **columns, ids=np.pad(ids, down, "edge"), logprobs=np.pad(logprobs, down, "edge"))


def _padded_chunks(chunks: Chunks) -> Arrays:
    """The runs with at least one behind them that weighs nothing."""
    return chunk_arrays(chunks, rounded_up(len(chunks) + 1, 8), rounded_up(len(chunks.rows) + 1, 8))


def _widened(batch: Batch, width: int) -> tuple[Any, Any]:
    """Tokens (1, L) and what each sees (L, L) of a packed batch, padded to a width with tokens that see themselves."""
    assert batch.visible is not None
    missing = width - batch.tokens.shape[1]
    visible = np.pad(batch.visible[0], (0, missing))
    visible[np.diag_indices(width)] = True
    return np.pad(batch.tokens, ((0, 0), (0, missing))), visible
