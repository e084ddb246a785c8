"""A student trained by PyTorch: adapters through PEFT, or all weights, on CUDA, MPS or the CPU.

Only rows that carry loss reach the output head, whose loss never holds a row of logits longer than it needs. A killed
training goes on from its newest whole checkpoint and, on the CPU, ends in the same bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingRequirement
from ..hardware import compute_dtype, device
from ..recipe import TrainSettings
from ..run import cores, no_room
from . import Estimate, Exam, Report, TrainingData
from .divergence import Divergence
from .initial import lora_a
from .lessons import Batch, Lesson, collated, paths
from .torch_chunks import with_chunks
from .torch_compile import compile_layers, require_cuda
from .torch_head import HeadRows, head_loss
from .torch_kl import Taught, whole_kl
from .torch_memory import free_bytes, peak_bytes, step_cost, used_bytes
from .torch_streamed import float32_fits, streamed_logits
from .training import ROOM, Loss, fitting, run_training

__all__ = ["TorchSession", "TorchStudent", "load", "pretrained"]

CLIP = 1.0
WORTH_SHARING = 4  # tokens that all texts of a batch begin with, from which on to compute them once pays
SHORT = 256  # tokens; up to here plain attention beats torch's fused one on a CPU, whose backward pass is slow


def load(base: Path) -> TorchStudent:
    """A student on a Hugging Face folder."""
    return TorchStudent(base)


class TorchStudent:
    """One base model on disk; weights are in memory only inside a method."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def train(self, data: TrainingData, settings: TrainSettings, out: Path, report: Report) -> dict[str, Any]:
        """Write `adapter/` and `metrics.jsonl`; return steps, final losses and rates.

        Raises EdgeDistillError that names the rows where a loss is not finite.
        """
        torch.set_num_threads(cores())
        torch.manual_seed(data.seed)
        model = _quantized(self._base) if settings.method == "qlora" else self._load(compute_dtype(torch))
        if device(torch) == "cpu" and max(len(example.tokens) for example in data.train) <= SHORT:
            model.set_attn_implementation("eager")
        _must_be_plain(self._base, model)
        session = TorchSession(model, settings, data.seed)
        summary = run_training(session, data, settings, out, report)
        dtype = str(compute_dtype(torch)).removeprefix("torch.")
        return {**summary, "trained_parameters": session.size, "dtype": dtype, "peak_memory_bytes": peak_bytes()}

    def logits(self, folder: Path, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Next-token logits after each row of token ids: float32 of shape (rows, vocabulary).

        They are computed in float32 whatever the memory: weights that do not fit are read layer by layer.
        """
        torch.set_num_threads(cores())
        if not float32_fits(folder):
            return streamed_logits(folder, rows)
        model = pretrained(folder, torch.float32)
        with torch.inference_mode():
            found = [model(torch.tensor([list(row)]), use_cache=False).logits[0, -1] for row in rows]
        return np.stack([row.float().numpy() for row in found])

    def _load(self, dtype: torch.dtype) -> Any:
        return pretrained(self._base, dtype).to(device(torch))


class TorchSession:
    """A training under way: model, optimizer, random state. See `training.Session`.

    With a `teacher`, a model of the same tokens in the same precision, the student learns its whole distributions at
    the lessons' rows, and not what the lessons say.
    """

    def __init__(self, model: Any, settings: TrainSettings, seed: int, teacher: Any = None) -> None:
        self._teacher = teacher
        self._settings = settings
        self._rows, self._recomputes, self._compiles = settings.micro_batch, False, False
        # a layer with a window, or with a state instead of attention, has another mask than ours, and another cache
        layers = getattr(model.config, "layer_types", None) or ()
        self._looks_back_freely = set(layers) <= {"full_attention"}
        self._how = Divergence(settings.divergence, settings.beta, settings.temperature)
        self._model = model.float() if settings.method == "full" else _with_adapter(model, settings, seed)
        # an adapter is small: its master weights and their moments stay in float32 whatever the base computes in
        self._weights = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    @property
    def size(self) -> int:
        """Trained weights."""
        return sum(weight.numel() for weight in self._weights.values())

    def settle(self, largest: Sequence[Lesson], settled: dict[str, Any] | None) -> tuple[dict[str, Any], Estimate]:
        """See `training.Session`: fewer examples at once, then activations computed twice, until a step fits."""
        settings, length = self._settings, max(map(len, largest))
        if settings.gradient_checkpointing == "on":
            self._compute_twice()
        loaded, room = used_bytes(), free_bytes() * ROOM  # before the trial, whose memory is used again
        cost = step_cost(self._model, self._summed, largest[0])

        def taken(rows: int) -> int:
            adds_up = rows < len(largest)
            return cost.bytes(1, rows * length, adds_up) if settings.packing else cost.bytes(rows, length, adds_up)

        if settled is None:
            settled = fitting(settings, len(largest), taken, room)
        if settled["recomputed"] and settings.gradient_checkpointing == "auto":
            self._compute_twice()
            cost = step_cost(self._model, self._summed, largest[0])
        self._rows = settled["micro_batch"]
        if settings.compile:
            require_cuda()
            self._compiles = True
            compile_layers(_backbone_and_head(self._model)[0].layers)
        seconds = cost.seconds_per_token * sum(map(len, largest))
        return settled, Estimate(loaded + taken(self._rows), seconds)

    def _compute_twice(self) -> None:
        """Keep each layer's input alone for the backward pass: gradient checkpointing, arXiv 1604.06174."""
        self._recomputes = True
        self._model.gradient_checkpointing_enable({"use_reentrant": False})
        if self._settings.method != "full":
            self._model.enable_input_require_grads()

    def step(self, lessons: Sequence[Lesson], learning_rate: float) -> tuple[Loss, float]:
        """Take one optimizer step; return its loss before the step, and the gradient's norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        weight = sum(lesson.weight for lesson in lessons)
        value = 0.0
        for part in _parts_of(lessons, self._rows):
            loss = self._summed(part) / weight
            value += float(loss.detach())
            if not math.isfinite(value):
                return Loss(value, weight), value
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._weights.values()), CLIP))
        if math.isfinite(norm):
            self._optimizer.step()
        return Loss(value, weight), norm

    def loss(self, lessons: Sequence[Lesson]) -> Loss:
        """The loss of the batch, without learning from it."""
        self._model.eval()
        weight = sum(lesson.weight for lesson in lessons)
        with torch.no_grad():
            total = sum(float(self._summed(part)) for part in _parts_of(lessons, self._rows))
        return Loss(total / weight, weight)

    def _summed(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """The weighted sum of the losses of all rows."""
        if not self._looks_back_freely:
            lessons = [path for lesson in lessons for path in paths(lesson)]
        batch = collated(lessons, packed=self._settings.packing and self._looks_back_freely)
        picked, weight = self._picked(self._model, batch)
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._picked(self._teacher, batch)
            wanted = torch.from_numpy(batch.rows.ce + batch.rows.soft).to(picked.device)
            return whole_kl(picked, weight, Taught(*taught, wanted))
        rows = HeadRows.of(batch.rows, picked.device)
        if batch.chunks is None:
            return head_loss(picked, weight, rows, self._how)[0]
        rows, beside = with_chunks(picked, weight, rows, batch.chunks, self._how)
        return head_loss(picked, weight, rows, self._how)[0] + beside

    def _picked(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A model's hidden state behind each loss row (R, H), and its head (V, H)."""
        backbone, head = _backbone_and_head(model)
        dtype = compute_dtype(torch)
        with torch.autocast(device(torch), dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = self._hidden(backbone, batch, dtype)
        at = torch.from_numpy(batch.rows.at).to(hidden.device, torch.int64)
        return hidden.flatten(0, 1)[at].to(dtype), head.weight.to(dtype)

    def _hidden(self, backbone: Any, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        """The last hidden state of every cell, (B, L, H).

        What all texts begin with, such as the chat template's header, is computed once and shared; its gradient is
        the sum of theirs.
        """
        shared = batch.shared if self._looks_back_freely and not self._recomputes and not self._compiles else 0
        inputs = _inputs(batch, dtype)
        if shared < WORTH_SHARING:
            found: torch.Tensor = backbone(**inputs, use_cache=False).last_hidden_state
            return found
        from transformers import DynamicCache

        ids, cache = inputs["input_ids"], DynamicCache()
        first = backbone(input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True).last_hidden_state
        cache.batch_repeat_interleave(len(ids))
        rest = backbone(input_ids=ids[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state
        return torch.cat([first.expand(len(ids), -1, -1), rest], dim=1)

    def complete(self, exam: Exam) -> list[list[int]]:
        """Greedy answers to the exam's prompts, as token ids without the end token."""
        self._model.eval()
        found = []
        # answers grow by a token a time: compiled layers would be compiled anew
        as_written = torch.compiler.set_stance("force_eager") if self._compiles else nullcontext()
        with torch.no_grad(), as_written:
            for prompt in exam.prompts:
                ids = torch.tensor([list(prompt)], device=device(torch))
                written = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=exam.longest,
                    do_sample=False,
                    eos_token_id=exam.end,
                    pad_token_id=exam.end,
                )
                answer = written[0, len(prompt) :].tolist()
                found.append(answer[: answer.index(exam.end)] if exam.end in answer else answer)
        return found

    def write(self, folder: Path) -> None:
        """Write the tensors of a checkpoint."""
        from safetensors.torch import save_file

        moments = {
            f"{name}/{kind}": value
            for name, weight in self._weights.items()
            for kind, value in self._optimizer.state[weight].items()
        }
        weights = {name: weight.detach().contiguous() for name, weight in self._weights.items()}
        with _room_for(folder):
            save_file(weights, folder / "weights.safetensors")
            save_file({**moments, "random": torch.get_rng_state()}, folder / "optimizer.safetensors")

    def read(self, folder: Path) -> None:
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

    def save_adapter(self, folder: Path) -> None:
        """Write what was learned: a PEFT adapter, or all weights."""
        with _room_for(folder):
            if self._settings.method != "full":
                self._model.save_pretrained(str(folder))
                return
            from safetensors.torch import save_file

            folder.mkdir(parents=True, exist_ok=True)
            save_file({n: w.detach().contiguous() for n, w in self._weights.items()}, folder / "model.safetensors")


def _must_be_plain(folder: Path, model: Any) -> None:
    """Raise InvalidInput where a model's logits are more than its last hidden state times its head."""
    with torch.no_grad():
        ids = torch.tensor([[0, 1, 2, 3]], device=device(torch))
        backbone, head = _backbone_and_head(model)
        ours = head(backbone(input_ids=ids, use_cache=False).last_hidden_state)
        whole = model(input_ids=ids, use_cache=False).logits
    largest = float(whole.abs().max())
    if math.isfinite(largest) and float((ours - whole).abs().max()) > 1e-2 * largest:
        raise InvalidInput(f"{folder}: '{model.config.model_type}' scales or caps its logits", "Use another student.")


def _parts_of(lessons: Sequence[Lesson], size: int) -> Iterator[Sequence[Lesson]]:
    """The lessons that are computed at once; 0 is all."""
    step = size or len(lessons)
    for start in range(0, len(lessons), step):
        yield lessons[start : start + step]


def _inputs(batch: Batch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the model takes.

    Attention is causal, so that padding behind an example changes nothing before it and needs no mask; where tokens
    branch or examples share a sequence, each token's position and what it sees are told.
    """
    where = device(torch)
    ids = torch.from_numpy(batch.tokens).to(where, torch.int64)
    if batch.visible is None:
        return {"input_ids": ids}
    hidden = torch.from_numpy(~batch.visible)[:, None].to(where)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=where).masked_fill_(hidden, torch.finfo(dtype).min)
    positions = torch.from_numpy(batch.positions).to(where, torch.int64)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _with_adapter(model: Any, settings: TrainSettings, seed: int) -> Any:
    """The model with an adapter on all linear layers but the head; its first weights depend on seed and name alone."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        use_dora=settings.method == "dora",
        task_type="CAUSAL_LM",
    )
    found = get_peft_model(model, config)
    for name, weight in found.named_parameters():
        if ".lora_A." in name:
            module = name.split(".lora_A.")[0].removeprefix("base_model.model.")
            weight.data.copy_(torch.from_numpy(lora_a(seed, module, *weight.shape)))
    return found


def _quantized(folder: Path) -> Any:
    """The base in 4 bits, as QLoRA holds it (arXiv 2305.14314)."""
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise MissingRequirement("train.method = 'qlora' needs bitsandbytes", "pip install bitsandbytes") from error
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(torch),
    )
    model = pretrained(folder, compute_dtype(torch), quantization_config=config, device_map={"": device(torch)})
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def pretrained(folder: Path, dtype: torch.dtype, **more: Any) -> Any:
    """The model in a Hugging Face folder; nothing is downloaded, and no code of the folder runs."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # what PEFT and transformers have to say to each other is none of the user's
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **more
    )


def _backbone_and_head(model: Any) -> tuple[Any, Any]:
    """The model without its output head, and the head."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.model, inner.lm_head


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
