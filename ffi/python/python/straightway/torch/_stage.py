"""A copy of a state dict to save from, made while the caller waits.

torch's stager makes each tensor of the copy anew: the kernel zeroes and enters a page for every 4 KiB, which takes longer than the
copy. It can keep the copy for the next save, in pinned memory, which wants a GPU. Here all tensors lie in one piece of memory with
huge pages, which the next copy may use again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._state_dict_utils import _copy_state_dict, _iterate_state_dict
from torch.distributed.tensor import DTensor

from .._native import Buffer, Engine

# Tensors begin at multiples of this: a cache line.
ALIGN_BYTES = 64


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
        total = 0

        def measure(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            # Out of a GPU a copy to pinned memory is faster, which torch keeps.
            if keep and tensor.is_cuda:
                raise NotOurs
            total += _room(tensor)
            return tensor

        _each(state_dict, measure)
        memory = self._memory(total, keep)
        at = 0

        def place(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal at
            size = tensor.numel() * tensor.element_size()
            if size == 0:
                return torch.empty(tensor.shape, dtype=tensor.dtype)
            # With a storage of its own: what saves a tensor by torch.save saves its storage.
            placed = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=at)
            at += _room(tensor)
            return placed.view(tensor.dtype).view(tensor.shape)

        return _copy_state_dict(state_dict, _each(state_dict, place), type_check=type_check)

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


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGN_BYTES) * ALIGN_BYTES


def _each(state_dict: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The state dict with each dense tensor changed."""

    def of_tensor(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise NotOurs
        return change(tensor)

    def of_dtensor(tensor: DTensor, *_: Any) -> DTensor:
        return DTensor(of_tensor(tensor._local_tensor), tensor._spec, requires_grad=False)

    def of_sharded(*_: Any) -> Any:
        raise NotOurs

    return _iterate_state_dict(state_dict, of_sharded, of_dtensor, of_tensor, type_check=False)
