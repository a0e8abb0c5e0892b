"""`load_together`, by the ranks of a job: what several want is read by one of them.

Each rank makes room for the tensors that it wants, and `torch.distributed.checkpoint` loads into it by a `StorageReader` that shares:
the plan over all ranks, the reads, the exchange and the agreement are those of `dcp.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Union

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from .. import _destination, _errors
from .._native import Engine
from . import from_buffer
from .checkpoint import StorageReader

# Tensors of a file with at most this many bytes between them lie in one region, with those bytes.
GAP_BYTES = 64 << 10


class Together(dict[str, torch.Tensor]):
    """Tensors by name. `reader` tells what this rank read and what it was given: `read_bytes`, `exchanged`, `why_group`, `ways`,
    `verification`."""

    reader: StorageReader


class _Reader(StorageReader):
    """With metadata that was read before."""

    ready: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.ready is None:
            self.ready = super().read_metadata(*args, **kwargs)
        return self.ready


def load(
    filename: Union[str, os.PathLike[str]],
    device: Union[str, int, torch.device],
    tensors: Iterable[str] | None,
    engine: Engine | None,
    **options: Any,
) -> Together:
    """Loads whole tensors; `options` are those of `StorageReader`. Raises on every rank what one of them fails by."""
    used = engine or Engine.shared()
    reader = _Reader(filename, share=True, engine=used, **options)
    names = [tensors] if isinstance(tensors, str) else None if tensors is None else list(tensors)
    loaded = Together()
    loaded.reader = reader

    def make_room() -> None:
        loaded.update(_room(used, reader.read_metadata(), names, _destination(device)))

    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False)
    if not dist.is_initialized():
        make_room()
        group, alone = None, True
    else:
        # Before torch's own collectives, in which nobody may be missing.
        group, alone = reader._exchange.begin(os.fspath(filename), make_room), False
    try:
        dcp.load(loaded, storage_reader=reader, planner=planner, process_group=group, no_dist=alone)
    except CheckpointException as error:
        failures = {rank: failure[0] for rank, failure in error.failures.items()}
        mine = failures.get(0 if group is None else dist.get_rank(group))
        raise (mine or next(iter(failures.values()))) from error
    except RuntimeError as error:
        # torch's own collectives fail when a rank has died. What this rank knew of it before says more.
        raise (reader._exchange.failed or reader._exchange._no_answer()) from error
    return loaded


def _room(engine: Engine, metadata: Metadata, names: list[str] | None, into: str) -> dict[str, torch.Tensor]:
    """Memory for tensors, in the order of the files, so that direct reads land in place."""
    known = {name: told for name, told in metadata.state_dict_metadata.items() if isinstance(told, TensorStorageMetadata)}
    missing = sorted(set(names or ()) - known.keys())
    if missing:
        raise _errors.new("not_found", f"no tensor {missing[0]!r} in the checkpoint; ask for one of its {len(known)}")
    room: dict[str, torch.Tensor] = {}
    placed: dict[str, list[tuple[int, int, str]]] = {}
    for name in known if names is None else names:
        told = known[name]
        size = told.properties.dtype.itemsize
        length = told.size.numel() * size
        info = metadata.storage_data[MetadataIndex(name, told.chunks[0].offsets)] if len(told.chunks) == 1 else None
        if length == 0:
            room[name] = torch.empty(told.size, dtype=told.properties.dtype)
        elif info is not None and info.length == length and info.offset % size == 0:
            placed.setdefault(info.relative_path, []).append((info.offset, length, name))
        else:
            # In pieces, behind a head, or at an address where elements may not lie.
            room[name] = _tensor(engine.allocate(length, into), 0, told)
    for some in placed.values():
        for region in _regions(sorted(some)):
            first, last = region[0][0], region[-1][0] + region[-1][1]
            memory = engine.allocate(last - first, into, phase=first)
            room |= {name: _tensor(memory, offset - first, known[name]) for offset, _, name in region}
    return room


def _regions(some: list[tuple[int, int, str]]) -> list[list[tuple[int, int, str]]]:
    regions: list[list[tuple[int, int, str]]] = []
    end = None
    for offset, length, name in some:
        if end is None or offset - end > GAP_BYTES:
            regions.append([])
        regions[-1].append((offset, length, name))
        end = offset + length
    return regions


def _tensor(memory: Any, at: int, told: TensorStorageMetadata) -> torch.Tensor:
    length = told.size.numel() * told.properties.dtype.itemsize
    return from_buffer(memory.view("U8", [length], at)).view(told.properties.dtype).view(told.size)
