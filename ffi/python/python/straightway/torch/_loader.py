"""The loader in the places where torch has its `DataLoader` and its `IterableDataset`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data

from .. import _data
from .._native import Batch


def _world(rank: int | None, world: int | None) -> tuple[int, int]:
    """As given, else as torch.distributed has it, else one process alone."""
    if rank is not None or world is not None:
        return rank or 0, world or 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _collate(dtype: torch.dtype, shape: Sequence[int] | None) -> Callable[[Batch], Any]:
    """A tensor of all samples where they have places of one length; a list of tensors where they have not. Views, all of them."""
    from . import _NAMES, from_buffer

    name = _NAMES[dtype]

    def typed(buffer: Any, *outer: int) -> torch.Tensor:
        inner = shape if shape is not None else [-1]
        if buffer.nbytes == 0:
            return torch.empty((*outer, *(0 if dim < 0 else dim for dim in inner)), dtype=dtype)
        return from_buffer(buffer.view(name)).view(*outer, *inner)

    def collate(batch: Batch) -> Any:
        data = batch.data
        if len(data.shape) == 2:
            return typed(data, len(batch))
        return [typed(sample) for sample in batch]

    return collate


class DataLoader:
    """In place of `torch.utils.data.DataLoader`: each `for` is an epoch of batches, as tensors.

    dataset, batch_size, shuffle, drop_last, seed, and the further options are those of `straightway.Loader`; rank and world are those
    of torch.distributed where it runs. Memory is bounded by `memory_bytes`, not by a number of workers; `num_workers`, `pin_memory`
    and others of torch that mean nothing here are not taken.
    Without `collate_fn`, a batch is a tensor (sample, byte) in the layouts `padded` and `fixed`, and a list of tensors in
    `ragged`; dtype, shape: of each sample. All are views of the batch's memory. collate_fn: a function of `straightway.Batch`.

    `state_dict` tells where the caller is; after `load_state_dict` the next `for` goes on exactly there, at any number of ranks. A
    `for` that was left in the middle is over otherwise; the next one begins the next epoch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool | str = False,
        *,
        drop_last: bool = False,
        collate_fn: Callable[[Batch], Any] | None = None,
        dtype: torch.dtype = torch.uint8,
        shape: Sequence[int] | None = None,
        rank: int | None = None,
        world: int | None = None,
        into: Any = "host",
        **options: Any,
    ):
        from .. import _destination

        rank, world = _world(rank, world)
        options = {"epochs": None, **options, "rank": rank, "world": world, "into": _destination(into)}
        self.loader = _data.Loader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, **options)
        self.batch_size = batch_size
        self.collate_fn = collate_fn or _collate(dtype, shape)
        # Whether an epoch was begun, and neither ended nor left behind by load_state_dict.
        self._inside = False

    def __iter__(self) -> Iterator[Any]:
        if self._inside:
            self._leave_epoch()
        self._inside = True
        for batch in self.loader.epoch():
            yield self.collate_fn(batch)
        self._inside = False

    def _leave_epoch(self) -> None:
        """The rest of the epoch is not wanted: so it is not read. A mixture has no epochs and goes on."""
        state = self.loader.state_dict()
        if cursor := state.get("dataset"):
            cursor["epoch"], cursor["taken"] = cursor["epoch"] + 1, 0
            self.loader.load_state_dict(state)

    def __len__(self) -> int:
        batches = self.loader.batches_per_epoch
        if batches is None:
            raise TypeError("a mixture has no end")
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Where the caller is: see `straightway.Loader.state_dict`."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `for` goes on from there."""
        self.loader.load_state_dict(state)
        self._inside = False

    def stats(self) -> _data.LoaderStats:
        """What was done so far."""
        return self.loader.stats()

    def close(self) -> None:
        """Ends the loader's threads."""
        self.loader.close()


class IterableDataset(torch.utils.data.IterableDataset):
    """For `torch.utils.data.DataLoader` (give it `batch_size=None`): gives whole batches.

    Arguments are those of `DataLoader` above. With `num_workers`, every worker is a rank of its own, with threads and memory of its
    own. Without is faster: threads read ahead anyway. Give `persistent_workers=True` with them: torch makes new workers for each `for`
    otherwise, which begin where `load_state_dict` said, or with the first epoch.

    `load_state_dict` before the `for` is for all workers: each goes on with its share. Where a worker is only the worker knows:
    `state_dict` there (of `torch.utils.data.get_worker_info().dataset`) is the same in all workers that gave as many batches, and is good
    for any number of them. Of this process it tells where a `for` without workers is.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool | str = False,
        *,
        rank: int | None = None,
        world: int | None = None,
        **options: Any,
    ):
        super().__init__()
        self._arguments = (dataset, batch_size, shuffle)
        self._options = options
        # Workers have no process group to ask.
        self._world = _world(rank, world)
        self._loader: DataLoader | None = None
        self._inherited: DataLoader | None = None
        self._process = os.getpid()
        self._state: Mapping[str, Any] | None = None

    def _made(self) -> DataLoader:
        if self._loader is None or self._process != os.getpid():
            # A worker that was forked has the loader of its parent, which works there alone. It is kept: its end would wait for threads
            # that are not here.
            self._inherited, self._process = self._loader, os.getpid()
            rank, world = self._world
            worker = torch.utils.data.get_worker_info()
            if worker is not None:
                rank, world = rank * worker.num_workers + worker.id, world * worker.num_workers
            self._loader = DataLoader(*self._arguments, rank=rank, world=world, **self._options)
            if self._state is not None:
                self._loader.load_state_dict(self._state)
        return self._loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._made())

    def state_dict(self) -> dict[str, Any]:
        """Where the caller is."""
        return self._made().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `for` goes on from there."""
        self._state = dict(state)
        if self._loader is not None and self._process == os.getpid():
            self._loader.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None, "_inherited": None}
