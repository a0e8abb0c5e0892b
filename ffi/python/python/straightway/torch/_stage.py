"""A copy of a state dict to save from, made while the caller waits.

torch's stager makes each tensor of the copy anew: the kernel zeroes and enters a page for every 4 KiB, which takes longer than the
copy, which one thread does. It can keep the copy for the next save, in pinned memory, which wants a GPU. Here all tensors lie in one
piece of memory with huge pages, and several threads copy, past the caches and out of GPUs too. A tensor lies as the writer lays it
into its file, so that the device takes it from here.

    prepare ──► Pool: pieces of memory, each with the copy that lies in it ──► copy: a free piece, or fresh memory
                  ▲ free: its save is through, or no tensor of the copy is left             │
                  └─────────────────────────────────────────────────────────────────────────┘ with `keep`
"""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._state_dict_utils import _iterate_state_dict
from torch.distributed.tensor import DTensor

from .. import _errors
from .._native import Buffer, Engine
from . import _NAMES, _bytes_of

# Tensors begin at multiples of this, as they do in the file: a cache line, and a block for tensors of LARGE_BYTES and more.
ALIGN_BYTES = 64
LARGE_ALIGN_BYTES = 4096
LARGE_BYTES = 64 << 10
# Shorter tensors torch copies one by one: to make views for the threads takes it as long as to copy that much.
SHORT_BYTES = 1 << 20
# Least size of a page: memory made ahead is touched that often.
PAGE_BYTES = 4096


# Elements that torch takes from a buffer as they are.
_FROM_BUFFER = {dtype for dtype, name in _NAMES.items() if name != "F4"}


class NotOurs(Exception):
    """A kind of tensor that only torch's stager knows."""


@dataclasses.dataclass(eq=False)
class _Piece:
    """Memory with a copy in it."""

    address: int
    nbytes: int
    # What keeps it for the next copy; None if it goes with the tensors of this one.
    kept: Buffer | None
    # Is there as long as tensors of the copy are.
    in_use: weakref.ref[memoryview] | None
    # The save that the copy was made for has read it.
    through: bool = False

    def is_gone(self) -> bool:
        """Whether no tensor lies in it."""
        return self.in_use is None or self.in_use() is None

    def is_free(self) -> bool:
        """Whether the next copy may have it."""
        return self.kept is not None and (self.through or self.is_gone())


class Pool:
    """Staging memory of one engine, whatever writers use it. Between saves it keeps one piece, the largest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[_Piece] = []
        self._ahead: threading.Thread | None = None

    def take(self, engine: Engine, total: int, *, keep: bool, budget: int | None) -> memoryview:
        """Memory for a copy of `total` bytes. Raises `ResourceLimit` if copies that are not free and this one pass the budget."""
        self._join()
        if budget is not None and self._held() + total > budget:
            # The error of a save that failed keeps its copy, in a cycle with the frames that it came through.
            gc.collect()
        with self._lock:
            free = [piece for piece in self._pieces if piece.is_free()]
            taken = [piece for piece in self._pieces if not (piece.is_free() or piece.is_gone())]
            held = sum(piece.nbytes for piece in taken)
            if budget is not None and held + total > budget:
                raise _over(total, held, budget)
            fit = next((piece for piece in free if piece.nbytes >= total and (budget is None or held + piece.nbytes <= budget)), None)
            # The others go before new memory is asked for: both together may be too much.
            self._pieces = taken
            free.clear()
            memory = fit.kept if fit is not None else None
            memory = memory or engine.allocate(max(total, ALIGN_BYTES))
            view = memoryview(memory)
            kept, address = (memory if keep else None), _address(view)
            self._pieces.append(_Piece(address, memory.nbytes, kept, weakref.ref(view)))
            return view

    def _held(self) -> int:
        """Bytes of copies that are in use."""
        with self._lock:
            return sum(piece.nbytes for piece in self._pieces if not (piece.is_free() or piece.is_gone()))

    def through(self, addresses: Iterable[int]) -> None:
        """Frees the copies that have tensors at these addresses: what was to be read of them was."""
        places = list(addresses)
        with self._lock:
            for piece in self._pieces:
                end = piece.address + piece.nbytes
                piece.through = piece.through or any(piece.address <= place < end for place in places)
            self._keep_one()

    def _keep_one(self) -> None:
        free = [piece for piece in self._pieces if piece.is_free()]
        for piece in sorted(free, key=lambda piece: piece.nbytes)[:-1]:
            self._pieces.remove(piece)

    def prepare(self, engine: Engine, total: int) -> None:
        """Makes memory for a copy of `total` bytes in the background, if there is none."""
        self._join()
        with self._lock:
            if any(piece.is_free() and piece.nbytes >= total for piece in self._pieces):
                return
        self._ahead = threading.Thread(target=self._make, args=(engine, total), name="straightway-prepare", daemon=True)
        self._ahead.start()

    def _make(self, engine: Engine, total: int) -> None:
        try:
            memory = engine.allocate(max(total, ALIGN_BYTES))
        except _errors.Error:
            # Whoever takes memory asks again, and is told.
            return
        bytes_of = torch.frombuffer(memory, dtype=torch.uint8)
        bytes_of[::PAGE_BYTES].zero_()
        with self._lock:
            self._pieces.append(_Piece(bytes_of.data_ptr(), memory.nbytes, memory, None))
            self._keep_one()

    def _join(self) -> None:
        ahead = self._ahead
        if ahead is not None:
            ahead.join()
            self._ahead = None

    def drop(self) -> int:
        """Gives back what is kept and free; bytes."""
        self._join()
        with self._lock:
            free = [piece for piece in self._pieces if piece.is_free()]
            self._pieces = [piece for piece in self._pieces if piece not in free]
            return sum(piece.nbytes for piece in free)


def _address(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8, count=1).data_ptr()


def _over(total: int, held: int, budget: int) -> Exception:
    text = f"stage {total} bytes of tensors failed: staging_bytes is {budget}"
    if held:
        text += f", of which a copy that is still in use has {held}"
    return _errors.new("resource_limit", f"{text}; give it more, wait for the save before, or use dcp.save, which copies nothing first")


# Of the engine that the process shares, which has another face each time it is asked for, and of those that were made.
_SHARED = Pool()
_POOLS: weakref.WeakKeyDictionary[Engine, Pool] = weakref.WeakKeyDictionary()


def pool_of(engine: Engine | None) -> Pool:
    """The staging memory of an engine, or of the shared one."""
    return _SHARED if engine is None else _POOLS.setdefault(engine, Pool())


class Stage:
    """Copies state dicts, one after the other. `budget`: most bytes of memory that copies which are in use may take."""

    def __init__(self, engine: Engine | None, budget: int | None = None) -> None:
        self._engine = engine or Engine.shared()
        self._pool = pool_of(engine)
        self._budget = budget

    def prepare(self, state_dict: Any) -> None:
        """Makes memory for a copy in the background. Raises `NotOurs`; `ResourceLimit` if it is more than the budget."""
        tensors: list[torch.Tensor] = []
        _collect(state_dict, tensors)
        _, total = _layout(tensors)
        if self._budget is not None and total > self._budget:
            raise _over(total, 0, self._budget)
        self._pool.prepare(self._engine, total)

    def through(self, tensors: Iterable[torch.Tensor]) -> None:
        """Their save has read them: the memory of their copies may be used again."""
        self._pool.through(tensor.data_ptr() for tensor in tensors if tensor.layout == torch.strided and tensor.device.type == "cpu")

    @torch.no_grad()
    def copy(self, state_dict: Any, *, keep: bool, type_check: bool) -> Any:
        """A copy on the CPU. With `keep` later ones are made in the same memory, once this one's save is through or it is gone.

        Raises `NotOurs`, `ResourceLimit`, and has copied nothing then.
        """
        tensors: list[torch.Tensor] = []
        _collect(state_dict, tensors)
        starts, total = _layout(tensors)
        memory = self._pool.take(self._engine, total, keep=keep, budget=self._budget)
        copies, by_torch, pairs = [], [], []
        for tensor, start in zip(tensors, starts):
            # With a storage of its own: what saves a tensor by torch.save saves its storage.
            if tensor.nbytes == 0:
                copies.append(torch.empty(tensor.shape, dtype=tensor.dtype))
            elif tensor.nbytes < SHORT_BYTES and tensor.dtype in _FROM_BUFFER:
                flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
                copies.append(flat if tensor.ndim == 1 else flat.view(tensor.shape))
                by_torch.append((tensor, copies[-1]))
            else:
                placed = torch.frombuffer(memory, dtype=torch.uint8, count=tensor.nbytes, offset=start)
                copies.append(placed.view(tensor.dtype).view(tensor.shape))
                if (tensor.is_cpu or _is_nvidia(tensor)) and tensor.is_contiguous():
                    pairs.append((_bytes_of(tensor), placed))
                else:
                    by_torch.append((tensor, copies[-1]))
        staged = _with(copies, state_dict, type_check)
        if by_torch:
            torch._foreach_copy_([copy for _, copy in by_torch], [tensor for tensor, _ in by_torch])
        self._engine.copy_many(pairs)
        return staged


def _is_nvidia(tensor: torch.Tensor) -> bool:
    """Whether it is in a GPU that the engine can drive: torch calls those of AMD cuda as well."""
    return tensor.is_cuda and torch.version.hip is None


def _collect(value: Any, found: list[torch.Tensor]) -> None:
    """The dense tensors of a state dict, of DTensors their parts here, in the order of `_iterate_state_dict`. Raises `NotOurs`."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, DTensor):
            value = value._local_tensor
        if isinstance(value, ShardedTensor) or value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise NotOurs
        found.append(value)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, found)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _collect(part, found)
    elif isinstance(value, ShardedTensor):
        raise NotOurs


def _layout(tensors: list[torch.Tensor]) -> tuple[list[int], int]:
    """Where each begins, and the bytes of all."""
    starts, end = [], 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        align = LARGE_ALIGN_BYTES if nbytes >= LARGE_BYTES else ALIGN_BYTES
        starts.append(-(-end // align) * align)
        end = starts[-1] + nbytes
    return starts, end


def _with(copies: list[torch.Tensor], state_dict: Any, type_check: bool) -> Any:
    """The state dict with these for its tensors; with `type_check` of kinds of values that torch's saver knows only."""
    left = iter(copies)

    def of_dtensor(tensor: DTensor, *_: Any) -> DTensor:
        return DTensor(next(left), tensor._spec, requires_grad=False)

    def of_tensor(*_: Any) -> torch.Tensor:
        return next(left)

    def of_sharded(*_: Any) -> Any:
        raise NotOurs

    return _iterate_state_dict(state_dict, of_sharded, of_dtensor, of_tensor, type_check=type_check)
