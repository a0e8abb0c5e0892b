"""A copy of a state dict to save from, made while the caller waits.

torch's stager makes each tensor of the copy anew: the kernel zeroes and enters a page for every 4 KiB, which takes longer than the
copy, which one thread does. It can keep the copy for the next save, in pinned memory, which wants a GPU. Here all tensors lie in one
piece of memory with huge pages, which the next copy may use again, and several threads copy. A tensor lies as the writer lays it
into its file, so that the device takes it from here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._state_dict_utils import _iterate_state_dict
from torch.distributed.tensor import DTensor

from .._native import Buffer, Engine
from . import _bytes_of

# Tensors begin at multiples of this, as they do in the file: a cache line, and a block for tensors of LARGE_BYTES and more.
ALIGN_BYTES = 64
LARGE_ALIGN_BYTES = 4096
LARGE_BYTES = 64 << 10


class NotOurs(Exception):
    """A kind of tensor that only torch's stager knows."""


class Stage:
    """Copies state dicts, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: Buffer | None = None
        # Is there as long as tensors of the last copy are.
        self._in_use: weakref.ref[memoryview] | None = None

    @torch.no_grad()
    def copy(self, state_dict: Any, *, keep: bool, type_check: bool) -> Any:
        """A copy on the CPU. With `keep` the next one is made in the same memory, if this one is gone by then.

        Raises `NotOurs`, and has copied nothing then.
        """
        end = 0

        def measure(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal end
            # Out of a GPU a copy to pinned memory is faster, which torch keeps.
            if keep and tensor.is_cuda:
                raise NotOurs
            end = _start(end, tensor) + tensor.nbytes
            return tensor

        _each(state_dict, measure, type_check)
        memory = self._memory(end, keep)
        end = 0
        pairs = []

        def place(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal end
            if tensor.nbytes == 0:
                return torch.empty(tensor.shape, dtype=tensor.dtype)
            start = _start(end, tensor)
            end = start + tensor.nbytes
            # With a storage of its own: what saves a tensor by torch.save saves its storage.
            placed = torch.frombuffer(memory, dtype=torch.uint8, count=tensor.nbytes, offset=start)
            copy = placed.view(tensor.dtype).view(tensor.shape)
            if tensor.is_cpu and tensor.is_contiguous():
                pairs.append((_bytes_of(tensor), placed))
            else:
                copy.copy_(tensor)
            return copy

        staged = _each(state_dict, place, type_check)
        self._engine.copy_many(pairs)
        return staged

    def _memory(self, total: int, keep: bool) -> memoryview:
        kept = self._kept
        used = self._in_use is not None and self._in_use() is not None
        if kept is None or used or kept.nbytes < total:
            # Let go before new memory is asked for: both together may be too much.
            kept = self._kept = None
            kept = self._engine.allocate(max(total, ALIGN_BYTES))
        memory = memoryview(kept)
        self._kept, self._in_use = (kept, weakref.ref(memory)) if keep else (None, None)
        return memory


def _start(end: int, tensor: torch.Tensor) -> int:
    """Where a tensor begins behind one that ends there."""
    align = LARGE_ALIGN_BYTES if tensor.nbytes >= LARGE_BYTES else ALIGN_BYTES
    return -(-end // align) * align


def _each(state_dict: Any, change: Callable[[torch.Tensor], torch.Tensor], type_check: bool) -> Any:
    """The state dict with each dense tensor changed; with `type_check` of kinds of values that torch's saver knows only."""

    def of_tensor(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise NotOurs
        return change(tensor)

    def of_dtensor(tensor: DTensor, *_: Any) -> DTensor:
        return DTensor(of_tensor(tensor._local_tensor), tensor._spec, requires_grad=False)

    def of_sharded(*_: Any) -> Any:
        raise NotOurs

    return _iterate_state_dict(state_dict, of_sharded, of_dtensor, of_tensor, type_check=type_check)
