"""The importance matrix: how strongly each column of each weight is used, summed up while a model computes anyway.

llama.cpp tells its evaluation callback every node of the graph. For a product with a weight, the squares of the other
side are summed over its rows, as llama.cpp's tools/imatrix does; the quantizer then rounds with the mean squares as
weights. Beyond that tool's tensors, the head is watched too, and batches of less than 16 tokens count.

The file has that tool's form: a GGUF of `NAME.in_sum2` and `NAME.counts`, both float32.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError, InvalidInput, MissingRequirement
from .child import whole_file
from .model import load_llama_cpp
from .reader import dequantized_rows, read_gguf

__all__ = ["Importance", "Usage", "read_importance", "write_importance"]

SUMS, COUNTS = ".in_sum2", ".counts"
HEADS = ("output.weight", "token_embd.weight")  # the second where the head is tied to the embeddings
DIMENSIONS, SOURCES, PARAMETERS, NAME = 4, 10, 16, 64  # ggml.h: GGML_MAX_DIMS, _SRC, _OP_PARAMS in int32, _NAME
F32 = 0  # ggml_type


class _Tensor(ctypes.Structure):
    """ggml.h's `ggml_tensor`, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * DIMENSIONS),
        ("nb", ctypes.c_size_t * DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * PARAMETERS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * NAME),
    )


@dataclass(slots=True)
class Usage:
    """What one weight was multiplied with."""

    sums: NDArray[np.float64]
    """(matrices, columns) Sums of squares; a weight has several matrices where it holds experts."""
    counts: NDArray[np.int64]
    """(matrices,) How many rows were summed."""

    def mean(self) -> NDArray[np.float32]:
        """(matrices, columns) The mean squares; 1 for a matrix that was never used, as llama-quantize has it."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1.0).astype(np.float32)


class Importance:
    """Sums up how a model's weights are used, while `callback` is its context's `cb_eval`."""

    def __init__(self) -> None:
        lib = load_llama_cpp()
        self._native = _Native(lib._lib)
        self._is_layout_known = True
        self._summed: dict[int, tuple[NDArray[np.float64], int]] = {}
        self.usage: dict[str, Usage] = {}
        """What was summed up so far, by the weight's name."""
        self.places: dict[str, int] = {}
        """The address of each weight's `ggml_tensor`, as long as the model is open."""
        self.callback = lib.ggml_backend_sched_eval_callback(self._see)

    def end_batch(self) -> None:
        """Take note that a batch is computed: the next one has its values in the same places.

        Raises MissingRequirement where llama.cpp's tensors have another layout than the one that is known here.
        """
        self._summed.clear()
        if not self._is_layout_known:
            raise MissingRequirement(
                "this llama-cpp-python lays its tensors out in another way: no importance matrix can be computed",
                "Use the version that edgedistill names, or write calibration_tokens = 0.",
            )

    def _see(self, address: int, is_asked: bool, _: Any) -> bool:
        """llama.cpp's question whether it shall show a node's result, and then the showing of it."""
        node = _Tensor.from_address(address)
        if is_asked:
            return self._wants(address, node)
        if node.op == self._native.routed:
            self._add_routed(node)
        else:
            self._add_product(node)
        return True

    def _wants(self, address: int, node: _Tensor) -> bool:
        if node.op not in (self._native.product, self._native.routed) or not self._is_layout_known:
            return False
        if self._native.name_of(address) != address + _Tensor.name.offset:
            self._is_layout_known = False
            return False
        name = _weight_name(_Tensor.from_address(node.src[0]))
        if not (name.startswith("blk.") or name in HEADS) or _Tensor.from_address(node.src[1]).type != F32:
            return False
        self.places[name] = node.src[0]
        if node.op == self._native.product and node.src[1] in self._summed:
            # several weights of a layer are used on the same values
            sums, rows = self._summed[node.src[1]]
            self._add(name, sums[None], np.array([rows]))
            return False
        return True

    def _add_product(self, node: _Tensor) -> None:
        weight, other = _Tensor.from_address(node.src[0]), _Tensor.from_address(node.src[1])
        values = self._values(other, np.float32)
        matrices = weight.ne[2] * weight.ne[3]
        sums = np.zeros((matrices, other.ne[0]))
        for outer in range(other.ne[3]):
            for inner in range(other.ne[2]):
                matrix = outer % weight.ne[3] * weight.ne[2] + inner % weight.ne[2]
                sums[matrix] += _squares(values[outer, inner])
        rows = other.ne[1] * other.ne[2] * other.ne[3] // matrices
        if matrices == 1:
            self._summed[node.src[1]] = sums[0], rows
        self._add(_weight_name(weight), sums, np.full(matrices, rows))

    def _add_routed(self, node: _Tensor) -> None:
        """A product with the experts that were chosen for each token: src[2] holds their numbers."""
        weight, other, chosen = (_Tensor.from_address(node.src[number]) for number in range(3))
        values, experts = self._values(other, np.float32)[0], self._values(chosen, np.int32)[0, 0]
        sums, counts = np.zeros((weight.ne[2], other.ne[0])), np.zeros(weight.ne[2], np.int64)
        for place in range(experts.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(experts[:, place]):
                is_routed = experts[:, place] == expert
                sums[expert] += _squares(rows[is_routed])
                counts[expert] += is_routed.sum()
        self._add(_weight_name(weight), sums, counts)

    def _add(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        known = self.usage.get(name)
        if known is None:
            self.usage[name] = Usage(sums.copy(), counts.astype(np.int64))
        else:
            known.sums += sums
            known.counts += counts

    def _values(self, tensor: _Tensor, kind: type[np.generic]) -> NDArray[Any]:
        """A tensor's values, its dimensions from the slowest to the fastest; read in place where they are in memory."""
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        size = np.dtype(kind).itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if self._native.is_host(tensor.buffer):
            raw = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = (ctypes.c_char * size)()
            self._native.get(ctypes.addressof(tensor), ctypes.addressof(raw), 0, size)
        values: NDArray[Any] = np.ndarray(shape, kind, raw, strides=strides)
        return values


class _Native:
    """ggml's functions that tell what a tensor is."""

    def __init__(self, library: ctypes.CDLL) -> None:
        address, size = ctypes.c_void_p, ctypes.c_size_t
        self.name_of = ctypes.CFUNCTYPE(address, address)(("ggml_get_name", library))
        self.is_host = ctypes.CFUNCTYPE(ctypes.c_bool, address)(("ggml_backend_buffer_is_host", library))
        self.get = ctypes.CFUNCTYPE(None, address, address, size, size)(("ggml_backend_tensor_get", library))
        operation = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(("ggml_op_name", library))
        self.product = next(number for number in itertools.count() if operation(number) == b"MUL_MAT")
        self.routed = next(number for number in itertools.count(self.product) if operation(number) == b"MUL_MAT_ID")


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(columns,) The sum of squares of each column."""
    return np.asarray(np.einsum("ij,ij->j", rows, rows))


def _weight_name(tensor: _Tensor) -> str:
    """A weight's name; "CUDA0#blk.0.attn_k.weight#0" is a copy of blk.0.attn_k.weight on a device."""
    name: str = tensor.name.decode(errors="replace")
    return name.split("#")[1] if "#" in name else name


def write_importance(path: Path, usage: Mapping[str, Usage], source: str, rows: int) -> None:
    """Write what was summed up over `rows` conversations of `source`, as llama-quantize reads it; whole or not at all.

    Raises EdgeDistillError where a value is not finite.
    """
    from gguf import GGUFWriter

    tokens = max(int(one.counts.max()) for one in usage.values())
    with whole_file(path) as partial:
        writer = GGUFWriter(partial, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [source])
        writer.add_uint32("imatrix.chunk_count", rows)
        writer.add_uint32("imatrix.chunk_size", -(-tokens // rows))
        for name, one in sorted(usage.items()):
            if not np.isfinite(one.sums).all():
                raise EdgeDistillError(
                    f"{path}: values of '{name}' are not finite", "The model or its file is damaged."
                )
            writer.add_tensor(f"{name}{SUMS}", one.sums.astype(np.float32))
            writer.add_tensor(f"{name}{COUNTS}", one.counts[:, None].astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_importance(path: Path) -> dict[str, Usage]:
    """What `write_importance` or llama-imatrix has written, by the weight's name.

    Raises InvalidInput where the file holds no importance matrix.
    """
    file = read_gguf(path)
    found = {}
    for name, tensor in file.tensors.items():
        counts = file.tensors.get(f"{name.removesuffix(SUMS)}{COUNTS}")
        if name.endswith(SUMS) and counts is not None:
            sums = dequantized_rows(path, tensor, 0, tensor.shape[0]).reshape(counts.shape[0], -1)
            numbers = dequantized_rows(path, counts, 0, counts.shape[0]).ravel()
            found[name.removesuffix(SUMS)] = Usage(sums.astype(np.float64), np.rint(numbers).astype(np.int64))
    if not found:
        raise InvalidInput(f"{path}: holds no importance matrix", "Name a file that llama-imatrix wrote.")
    return found
