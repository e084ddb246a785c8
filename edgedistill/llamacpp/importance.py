"""How much each input of a matrix matters: the mean square of what it is multiplied with, on texts of the task.

llama.cpp shows every tensor as it computes it (`cb_eval`), so the importance matrix is a by-product of any pass. What
is summed is what llama-imatrix sums, and the file is one of its own (GGUF with `general.type = "imatrix"`):
https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingRequirement
from .child import whole_file
from .reader import dequantized_rows, read_gguf

__all__ = ["Importance", "ImportanceCollector", "as_structs", "read_importance", "write_importance"]

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
F32 = 0  # ggml_type
SHARPNESS = 1.25  # the power of the weights that a quantizer is given
CHUNK = 512  # rows that make a chunk, as llama-imatrix counts
BLOCK = 64  # rows that are squared at a time: they stay in the cache


@dataclass(frozen=True, slots=True)
class Importance:
    """Sums of squared inputs by the matrix's name, and how many rows they are of; a mixture has several matrices."""

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """(M, C): M matrices of C columns."""
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """(M,)"""

    def add(self, name: str, sums: NDArray[Any], counts: NDArray[np.int64]) -> None:
        """Count further rows of a matrix.

        Raises InvalidInput where they are of another shape, or not finite.
        """
        if not np.isfinite(sums).all():
            raise InvalidInput(f"{name}: its inputs are not finite", "The model or its file is damaged.")
        if name not in self.sums:
            self.sums[name] = np.zeros(sums.shape)
            self.counts[name] = np.zeros(len(counts), np.int64)
        if self.sums[name].shape != sums.shape:
            raise InvalidInput(f"{name}: {self.sums[name].shape} and {sums.shape} inputs", "Of one model only.")
        self.sums[name] += sums
        self.counts[name] += counts

    def weights(self, name: str) -> NDArray[np.float32]:
        """(M * C,) Mean squares; 1 for a matrix that no row came to, as llama-quantize has it."""
        sums, counts = self.sums[name], self.counts[name][:, None]
        return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0).astype(np.float32).ravel()

    @property
    def rows(self) -> int:
        """The most rows that came to a matrix."""
        return max((int(counts.max()) for counts in self.counts.values()), default=0)


def write_importance(importance: Importance, path: Path, dataset: str) -> None:
    """Write the file that llama-quantize reads with --imatrix; `dataset` says what texts it is of.

    Raises Stopped where the disk is full.
    """
    from gguf import GGUFWriter

    class ImatrixWriter(GGUFWriter):  # type: ignore[misc]
        def add_architecture(self) -> None:
            """Such a file has none."""

    with whole_file(path) as partial:
        writer = ImatrixWriter(partial, "")
        writer.add_type("imatrix")
        writer.add_array(DATASETS, [dataset])
        writer.add_uint32(CHUNK_COUNT, -(-importance.rows // CHUNK))
        writer.add_uint32(CHUNK_SIZE, CHUNK)
        for name in sorted(importance.sums):
            writer.add_tensor(name + SUMS, importance.sums[name].astype(np.float32))
            writer.add_tensor(name + COUNTS, importance.counts[name].astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_importance(path: Path) -> Importance:
    """The importance matrix in a GGUF file, ours or llama-imatrix's.

    Raises InvalidInput where it is not there, not whole, or not one.
    """
    gguf = read_gguf(path)
    found = Importance()
    for name, tensor in gguf.tensors.items():
        stem = name.removesuffix(SUMS)
        if stem == name:
            continue
        counted = gguf.tensors.get(stem + COUNTS)
        if counted is None or {tensor.kind, counted.kind} != {"F32"}:
            raise InvalidInput(f"{path}: {stem}: sums without counts in 32 bits", "Make the file again.")
        sums = dequantized_rows(path, tensor, 0, tensor.shape[0])
        counts = dequantized_rows(path, counted, 0, counted.shape[0]).ravel()
        if sums.size % len(counts) or not (np.isfinite(counts) & (counts >= 0)).all():
            raise InvalidInput(f"{path}: {stem}: {sums.size} sums and {len(counts)} counts", "Make the file again.")
        if not (np.isfinite(sums) & (sums >= 0)).all():
            raise InvalidInput(f"{path}: {stem}: sums that are no sums of squares", "Make the file again.")
        # of a single matrix llama-imatrix writes a vector
        found.add(stem, sums.reshape(len(counts), -1), np.rint(counts).astype(np.int64))
    if not found.sums:
        raise InvalidInput(f"{path}: no importance matrix", "Name a GGUF file that llama-imatrix or quantize wrote.")
    return found


class _Tensor(ctypes.Structure):
    """`ggml_tensor` of ggml.h, as far as its name."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


@cache
def _ggml() -> Any:
    """ggml's library with the few functions that are needed here."""
    from llama_cpp import _ggml

    lib = _ggml.libggml
    for name, result, arguments in (
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_get_data", ctypes.c_void_p, [ctypes.c_void_p]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [ctypes.c_void_p]),
        ("ggml_backend_tensor_get", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class ImportanceCollector:
    """Sums the squared inputs of a model's matrices while it computes. `callback` goes into a context's settings."""

    def __init__(self) -> None:
        from llama_cpp import llama_cpp

        self._lib = _ggml()
        names = {self._lib.ggml_op_name(number): number for number in range(64)}
        self._plain, self._experts = names[b"MUL_MAT"], names[b"MUL_MAT_ID"]
        self._found = Importance()
        self._failed: Exception | None = None
        self._last: tuple[int, NDArray[np.float64], int] = (0, np.empty((0, 0)), 0)
        self._is_known = False
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._look)

    @property
    def importance(self) -> Importance:
        """What has been summed so far. Raises what went wrong on the way, which llama.cpp cannot pass on."""
        if self._failed is not None:
            raise self._failed
        return self._found

    def _look(self, address: int, asks: bool, _data: Any) -> bool:
        """Whether the tensor is wanted, or, once it is computed, take from it what is."""
        try:
            tensor = _Tensor.from_address(address)
            if tensor.op not in (self._plain, self._experts) or self._failed is not None:
                return False
            name = _plain_name(_Tensor.from_address(tensor.src[0]).name)
            if asks:
                return name.startswith("blk.") and _Tensor.from_address(tensor.src[1]).type == F32
            self._take(address, tensor, name)
        except Exception as error:  # noqa: BLE001 - ctypes would print it and go on
            self._failed = error
        return True

    def _take(self, address: int, tensor: _Tensor, name: str) -> None:
        self._require_layout(address, tensor)
        weights = _Tensor.from_address(tensor.src[0])
        matrices = int(weights.ne[2] * weights.ne[3])
        if tensor.op == self._experts:
            inputs, chosen = self._array(tensor.src[1], np.float32)[0], self._array(tensor.src[2], np.int32)[0, 0]
            self._found.add(name, *expert_sums(inputs, chosen, matrices))
            return
        if tensor.src[1] != self._last[0]:  # query, key and value have one input, gate and up another
            inputs = self._array(tensor.src[1], np.float32)
            parts = matrices if matrices == inputs.shape[0] * inputs.shape[1] else 1
            by_matrix = inputs.reshape(parts, inputs.size // (parts * inputs.shape[-1]), inputs.shape[-1])
            self._last = (tensor.src[1], np.stack([squares(rows) for rows in by_matrix]), by_matrix.shape[1])
        _, sums, count = self._last
        if count and len(sums) == matrices:
            self._found.add(name, sums, np.full(matrices, count, np.int64))

    def _array(self, address: int, kind: Any) -> NDArray[Any]:
        """A tensor's numbers, slowest dimension first: in place, or copied where they are not in this memory."""
        tensor = _Tensor.from_address(address)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        size = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 4 if min(shape) > 0 else 0
        if not size:
            return np.empty(shape, kind)
        if self._lib.ggml_backend_buffer_is_host(tensor.buffer):
            memory: Any = (ctypes.c_char * size).from_address(tensor.data)
        else:
            memory = (ctypes.c_char * size)()
            self._lib.ggml_backend_tensor_get(address, memory, 0, size)
        found: NDArray[Any] = np.ndarray(shape, kind, memory, strides=strides)
        return found

    def _require_layout(self, address: int, tensor: _Tensor) -> None:
        """Raise MissingRequirement where ggml's tensors lie otherwise than here: another version of the library."""
        if self._is_known:
            return
        same_name = self._lib.ggml_get_name(address) == tensor.name
        if not same_name or self._lib.ggml_get_data(address) != tensor.data:
            raise MissingRequirement("this llama-cpp-python has other tensors", "pip install llama-cpp-python==0.3.36")
        self._is_known = True


def squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C,) The sum of squares of each column."""
    found = np.zeros(rows.shape[1])
    for start in range(0, len(rows), BLOCK):
        found += np.square(rows[start : start + BLOCK]).sum(axis=0)
    return found


def expert_sums(
    inputs: NDArray[np.float32], chosen: NDArray[np.int32], matrices: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of squares and rows by expert: `inputs` (T, U, C), or (T, 1, C) where all have one; `chosen` (T, U)."""
    sums, counts = np.zeros((matrices, inputs.shape[-1])), np.bincount(chosen.ravel(), minlength=matrices)
    for expert in np.flatnonzero(counts):
        token, place = np.nonzero(chosen == expert)
        sums[expert] = squares(inputs[token, place % inputs.shape[1]])
    return sums, counts.astype(np.int64)


def _plain_name(name: bytes) -> str:
    """A weight's name without what the scheduler puts around it.

    >>> _plain_name(b"CUDA0#blk.0.attn_k.weight#0"), _plain_name(b"blk.0.attn_k.weight")
    ('blk.0.attn_k.weight', 'blk.0.attn_k.weight')
    """
    text = name.decode(errors="replace")
    return text.split("#")[1] if "#" in text else text


def as_structs(lib: Any, importance: Importance) -> tuple[Any, list[Any]]:
    """The importance as llama_model_quantize takes it, and what must live as long.

    The quantizers multiply it with the size of each weight, which evens the columns out. To the power of 1.25 it left
    5, 4 and 1 % less divergence in SmolLM2-135M's Q4_K_M, IQ4_XS and Q3_K_M, and 1 % less in Qwen2.5-Coder-0.5B's
    Q4_K_M (8,192 tokens of other text); to the power of 1.5 it left 12 % more in Q3_K_M.
    """
    kept: list[Any] = []
    rows = (lib.llama_model_imatrix_data * (len(importance.sums) + 1))()
    for row, name in zip(rows, importance.sums, strict=False):
        values = np.ascontiguousarray(importance.weights(name) ** np.float32(SHARPNESS))
        text = name.encode()
        kept += [values, text]
        row.name, row.size = text, values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return rows, kept
