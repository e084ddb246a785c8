"""A Hugging Face teacher, through transformers on CUDA, MPS or the CPU.

The model's own attention is replaced by one that packs texts of different lengths and shares their prefix; whether the
model still says the same is measured when it is loaded.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidInput
from ..hardware import compute_dtype, device
from ..run import cores
from . import TeacherTask
from .decoder import STEP_TOKENS, Chunk, Logits, first_line
from .folder import FolderTeacher
from .ragged_attention import Memory, Options, Step

__all__ = ["TorchDecoder", "load"]

ATTENTION = "edgedistill-ragged"
LAYERS = {"full_attention", "sliding_attention"}
OTHER_BACKENDS = "Use it as a GGUF file with the 'llamacpp' backend, or with 'mlx'."
UNKNOWN = 1 << 30  # the context of a model whose config does not state it
PROBE = 24  # tokens on which the replaced attention is compared with the model's own
ALIKE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # nats of KL divergence that are only rounding


def load(task: TeacherTask) -> FolderTeacher:
    """A teacher for the task."""
    return FolderTeacher(task, TorchDecoder, _give_back)


class TorchDecoder:
    """A model and the texts in its slots.

    Raises InvalidInput where its architecture keeps more of a text than keys and values.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(cores())
        self._model = _pretrained(folder)
        config = self._model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.context: int = getattr(config, "max_position_embeddings", UNKNOWN)
        self._memory = Memory()
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds <= LAYERS or not type(self._model)._supports_attention_backend or not self._is_true():
            raise InvalidInput(
                f"{folder}: the attention of {type(self._model).__name__} cannot share a prefix here",
                OTHER_BACKENDS,
            )

    def start(self, prefix: Sequence[int]) -> None:
        """Decode what all texts begin with; every slot is new again."""
        self._memory.clear()
        for begin in range(0, len(prefix), STEP_TOKENS):
            self.step({0: Chunk(prefix[begin : begin + STEP_TOKENS], 0)})
            self._memory.add_to_prefix(0)

    def step(self, chunks: Mapping[int, Chunk]) -> dict[int, Logits]:
        """Append to some slots in one forward pass; the wanted logits of each."""
        step = Step(self._memory, {slot: chunk.tokens for slot, chunk in chunks.items()}, device(torch))
        tokens: list[int] = []
        wanted: list[int] = []
        for chunk in chunks.values():
            tokens += chunk.tokens
            wanted += range(len(tokens) - chunk.wanted, len(tokens))
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([tokens], device=device(torch)),
                position_ids=(self._memory.prefix + step.places)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device(torch)),
                edgedistill_step=step,
            ).logits[0]
        rows = logits.float().cpu().numpy()
        found, begin = {}, 0
        for slot, chunk in chunks.items():
            if chunk.wanted:
                found[slot] = rows[begin : begin + chunk.wanted]
            begin += chunk.wanted
        return found

    def fork(self, slot: int, others: Iterable[int]) -> None:
        """Make other, new slots hold what a slot holds."""
        with torch.inference_mode():
            self._memory.fork(slot, list(others))

    def free(self, slots: Iterable[int]) -> None:
        """Make slots new again."""
        self._memory.free(slots)

    def _is_true(self) -> bool:
        """Whether the replaced attention, in three steps, says what the model's own does in one."""
        tokens = [1 + number * 7919 % (self.vocab_size - 1) for number in range(PROBE)]
        self._model.set_attn_implementation("eager")
        with torch.inference_mode():
            own = self._model(input_ids=torch.tensor([tokens], device=device(torch)), use_cache=False).logits[0, -1]
        self._model.set_attn_implementation(ATTENTION)
        self.start(tokens[: PROBE // 2])
        self.step({1: Chunk(tokens[PROBE // 2 : -4], 0), 2: Chunk(tokens[:3], 0)})
        ours = torch.from_numpy(self.step({1: Chunk(tokens[-4:])})[1][-1]).log_softmax(-1)
        own = own.float().cpu().log_softmax(-1)
        self._memory.clear()
        return float((own.exp() * (own - ours)).sum()) < ALIKE[compute_dtype(torch)]


def _attend(module: Any, query: Any, key: Any, value: Any, _mask: Any, **options: Any) -> tuple[Any, None]:
    """transformers' attention interface: query, key, value of shape (1, heads, tokens, size)."""
    plain = Options(
        options.get("scaling") or query.shape[-1] ** -0.5,
        options.get("sliding_window"),
        options.get("softcap"),
        options.get("s_aux"),
    )
    step: Step = options["edgedistill_step"]
    return step.attend(module.layer_idx, query[0], (key[0], value[0]), plain)[None], None


def _pretrained(folder: Path) -> Any:
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.utils import logging

    # what transformers has to say to its developers is none of the user's
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    AttentionInterface.register(ATTENTION, _attend)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=compute_dtype(torch),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
        )
    except ValueError as error:
        raise InvalidInput(f"{folder}: {first_line(error)}", OTHER_BACKENDS) from error
    return model.to(device(torch)).eval()


def _give_back() -> None:
    gc.collect()
    if device(torch) == "cuda":
        torch.cuda.empty_cache()
