"""A student trained by PyTorch: LoRA through PEFT, or all weights, on CUDA, MPS or the CPU.

Only completion tokens carry loss, and only their rows reach the output head. A killed training goes on from its newest
whole checkpoint and, on the CPU, ends in the same bits.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EdgeDistillError, Stopped
from ..hardware import compute_dtype, device
from ..recipe import TrainSettings
from ..records import json_lines
from ..run import cores, no_room, stop_if_asked, write_whole
from . import TrainingData, TrainStep, checkpoints
from .batching import epoch_batches, padded_share
from .encode import EncodedExample

__all__ = ["TorchStudent", "load"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
LARGEST_FLOAT16 = 65504.0
CLIP = 1.0
SHORT = 256  # tokens; up to here plain attention beats torch's fused one on a CPU, whose backward pass is slow


def load(base: Path) -> TorchStudent:
    """A student on a Hugging Face folder."""
    return TorchStudent(base)


@dataclass(frozen=True)
class _Plan:
    """All batches of a training, in order: what to resume is a step number."""

    batches: tuple[tuple[int, ...], ...]
    epoch_ends: frozenset[int]

    @classmethod
    def of(cls, data: TrainingData, settings: TrainSettings) -> _Plan:
        batches: list[tuple[int, ...]] = []
        ends = []
        for epoch in range(settings.epochs):
            batches += map(tuple, epoch_batches(data.train, settings.batch_size, data.seed + epoch))
            ends.append(len(batches))
        return cls(tuple(batches), frozenset(ends))


class TorchStudent:
    """One base model on disk; weights are in memory only inside a method."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def train(
        self, data: TrainingData, settings: TrainSettings, out: Path, report: Callable[[TrainStep], None]
    ) -> dict[str, Any]:
        """Write `adapter/` and `metrics.jsonl`; return steps, final losses and rates.

        Raises EdgeDistillError that names the batch where the loss is not finite.
        """
        torch.set_num_threads(cores())
        torch.manual_seed(data.seed)
        model = self._load(compute_dtype(torch))
        if device(torch) == "cpu" and max(len(example.tokens) for example in data.train) <= SHORT:
            model.set_attn_implementation("eager")
        session = _Session(model, data, settings)
        plan = _Plan.of(data, settings)
        found = checkpoints.newest(out / "checkpoints")
        if found is not None:
            session.restore(*found)
        while session.step < len(plan.batches):
            session.run_step(plan, report)
            due = session.step == len(plan.batches) or session.step % settings.checkpoint_steps == 0
            if due:
                session.save(out / "checkpoints")
            try:
                stop_if_asked()
            except Stopped:
                if not due:
                    session.save(out / "checkpoints")
                raise
        write_whole(out / "metrics.jsonl", json_lines(session.metrics))
        with _room_for(out / "adapter"):
            session.save_adapter(out / "adapter")
        last = session.metrics[-1]
        return {
            "steps": session.step,
            "loss": last["loss"],
            "valid_loss": last.get("valid_loss"),
            "trained_parameters": session.size,
            "padded_share": round(padded_share(data.train, plan.batches), 4),
            "dtype": str(compute_dtype(torch)).removeprefix("torch."),
            "resumed_from": found[1]["step"] if found else 0,
        }

    def merge(self, adapter: Path, out: Path) -> None:
        """Write base + adapter as a Hugging Face folder with 16-bit safetensors; tokenizer files are copied as is."""
        model = self._load(torch.float32)
        if (adapter / "adapter_config.json").is_file():
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        else:
            found = model.load_state_dict(_read_tensors(adapter / "model.safetensors"), strict=False)
            model.tie_weights()
            if found.unexpected_keys or set(found.missing_keys) - {"lm_head.weight"}:
                raise EdgeDistillError(f"{adapter}: not the weights of {self._base}", "Redo with --from train.")
        extremes = [float(weight.detach().abs().max()) for weight in model.parameters()]
        if not all(map(math.isfinite, extremes)) or max(extremes) > LARGEST_FLOAT16:
            raise EdgeDistillError(
                f"{adapter}: weights are not finite, or too large for 16 bits", "Lower train.learning_rate."
            )
        model.to(torch.float16)
        with _room_for(out):
            model.save_pretrained(out)
            for name in TOKENIZER_FILES:
                if (self._base / name).is_file():
                    shutil.copyfile(self._base / name, out / name)

    def logits(self, folder: Path, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Next-token logits after each row of token ids: float32 of shape (rows, vocabulary)."""
        torch.set_num_threads(cores())
        model = _pretrained(folder, torch.float32)
        with torch.inference_mode():
            found = [model(torch.tensor([list(row)]), use_cache=False).logits[0, -1] for row in rows]
        return np.stack([row.float().numpy() for row in found])

    def _load(self, dtype: torch.dtype) -> Any:
        return _pretrained(self._base, dtype).to(device(torch))


class _Session:
    """A training under way: model, optimizer, where it stands."""

    def __init__(self, model: Any, data: TrainingData, settings: TrainSettings) -> None:
        self._settings = settings
        self._data = data
        self._model = _with_adapter(model, settings) if settings.method == "lora" else model.float()
        # an adapter is small: its master weights and their moments stay in float32 whatever the base computes in
        self._weights = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0
        self.metrics: list[dict[str, Any]] = []

    @property
    def size(self) -> int:
        return sum(weight.numel() for weight in self._weights.values())

    def run_step(self, plan: _Plan, report: Callable[[TrainStep], None]) -> None:
        """One optimizer step on the next batch, recorded and reported."""
        batch = [self._data.train[index] for index in plan.batches[self.step]]
        rate = learning_rate(self.step, len(plan.batches), self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        started = time.perf_counter()
        self._model.train()
        loss, _ = self._loss(batch)
        value = float(loss.detach())
        self._must_be_finite("loss", value, batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self._weights.values()), CLIP)
        self._must_be_finite("gradient's norm", float(norm), batch)
        self._optimizer.step()
        self.step += 1
        seconds = time.perf_counter() - started
        valid = self._valid_loss() if self.step in plan.epoch_ends and self._data.valid else None
        tokens = sum(len(example.tokens) for example in batch)
        moment = TrainStep(self.step, len(plan.batches), value, rate, tokens / seconds, valid)
        self.metrics.append(
            {"step": self.step, "loss": value, "learning_rate": rate, "tokens_per_s": round(moment.tokens_per_s, 1)}
            | ({} if valid is None else {"valid_loss": valid})
        )
        report(moment)

    def _must_be_finite(self, what: str, value: float, batch: Sequence[EncodedExample]) -> None:
        if not math.isfinite(value):
            names = ", ".join(example.id for example in batch)
            raise EdgeDistillError(
                f"step {self.step + 1}: the {what} is {value}; rows {names}",
                "Lower train.learning_rate, or drop the rows.",
            )

    def _loss(self, batch: Sequence[EncodedExample]) -> tuple[Any, int]:
        """Mean cross entropy in nats over the batch's completion tokens, and how many these are."""
        ids, rows, columns, targets = _tensors(batch)
        backbone, head = _parts(self._model)
        with torch.autocast(device(torch), dtype=torch.bfloat16, enabled=compute_dtype(torch) == torch.bfloat16):
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
            logits = head(hidden[rows, columns])
        return torch.nn.functional.cross_entropy(logits.float(), targets), len(targets)

    def _valid_loss(self) -> float:
        self._model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in _chunks(sorted(self._data.valid, key=lambda e: len(e.tokens)), self._settings.batch_size):
                loss, size = self._loss(batch)
                total, count = total + loss.item() * size, count + size
        return total / count

    def state(self) -> dict[str, Any]:
        """All of a checkpoint that is no tensor."""
        return {"metrics": self.metrics}

    def save(self, folder: Path) -> None:
        """Write a checkpoint into the folder."""
        with _room_for(folder):
            checkpoints.save(folder, self.step, self.state(), self.write)

    def write(self, folder: Path) -> None:
        """Write the tensors of a checkpoint."""
        from safetensors.torch import save_file

        moments = {
            f"{name}/{kind}": value
            for name, weight in self._weights.items()
            for kind, value in self._optimizer.state[weight].items()
        }
        weights = {name: weight.detach().contiguous() for name, weight in self._weights.items()}
        save_file(weights, folder / "weights.safetensors")
        save_file({**moments, "random": torch.get_rng_state()}, folder / "optimizer.safetensors")

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        saved = _read_tensors(folder / "weights.safetensors")
        moments = _read_tensors(folder / "optimizer.safetensors")
        torch.set_rng_state(moments.pop("random"))
        for name, weight in self._weights.items():
            weight.data.copy_(saved[name])
            self._optimizer.state[weight] = {}
        for key, value in moments.items():
            name, kind = key.rsplit("/", 1)
            self._optimizer.state[self._weights[name]][kind] = value if kind == "step" else value.to(device(torch))
        self.step = state["step"]
        self.metrics = state["metrics"]

    def save_adapter(self, folder: Path) -> None:
        """Write what was learned: a PEFT adapter, or all weights."""
        if self._settings.method == "lora":
            self._model.save_pretrained(str(folder))
            return
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: w.detach().contiguous() for n, w in self._weights.items()}, folder / "model.safetensors")


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine to 0.

    >>> learning_rate(0, 100, TrainSettings(learning_rate=1.0, warmup_share=0.1))
    0.1
    >>> learning_rate(9, 100, TrainSettings(learning_rate=1.0, warmup_share=0.1))
    1.0
    """
    warmup = max(1, round(steps * settings.warmup_share))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _with_adapter(model: Any, settings: TrainSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _pretrained(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # what PEFT and transformers have to say to each other is none of the user's
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def _parts(model: Any) -> tuple[Any, Any]:
    """The model without its output head, and the head."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.model, inner.lm_head


def _tensors(batch: Sequence[EncodedExample]) -> tuple[Any, Any, Any, Any]:
    """Right-padded ids (rows, longest), and row, column and target of every position that predicts a completion token.

    Attention is causal, so that padding behind an example changes nothing before it and needs no mask.
    """
    longest = max(len(example.tokens) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    rows, columns, targets = [], [], []
    for row, example in enumerate(batch):
        ids[row, : len(example.tokens)] = torch.tensor(example.tokens)
        for position in range(example.start, len(example.tokens)):
            rows.append(row)
            columns.append(position - 1)
            targets.append(example.tokens[position])
    where = device(torch)
    return ids.to(where), torch.tensor(rows), torch.tensor(columns), torch.tensor(targets).to(where)


def _chunks(examples: Sequence[EncodedExample], size: int) -> Iterator[Sequence[EncodedExample]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Raise Stopped where the block could not write; safetensors has an error of its own for that."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise no_room(path, error) from error
    except SafetensorError as error:
        raise no_room(path, OSError(str(error))) from error


def _read_tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors
