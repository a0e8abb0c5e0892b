"""`load_together` and `load_state_dict_together`, by the ranks of a job: what several want is read by one of them.

    state dict ── planner of torch ──► what this rank wants ── all ranks tell each other ──► share_out, the same on each rank
    ──► StorageReader: reads, exchange and agreement, as under `dcp.load`

`dcp.load` has one rank make the plans of all, while the others wait, and sends whole plans; here what ranks send is as short as
it can be, and each works out its own share. `load_together` makes room for the tensors first, and loads into it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Union

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from .. import _destination, _errors
from .._native import Engine
from . import from_buffer
from ._share import share_out
from .checkpoint import StorageReader, in_shares

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


class _Planner(dcp.DefaultLoadPlanner):
    """torch's, quicker for plain tensors and DTensors that the checkpoint has as they are: no look at every attribute of a tensor for
    each of its items, and each shard looked up once. Everything else is torch's own work, and so is every complaint."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._found: dict[Any, torch.Tensor] = {}

    def create_local_plan(self) -> LoadPlan:
        described = self.metadata.state_dict_metadata if self.metadata is not None else {}
        if described.keys() != self.state_dict.keys():
            return super().create_local_plan()
        items: list[ReadItem] = []
        for name, value in self.state_dict.items():
            told = described[name]
            if not _is_plain(value) or not isinstance(told, TensorStorageMetadata) or told.size != value.size():
                return super().create_local_plan()
            if isinstance(value, DTensor):
                # A rank outside the mesh of a tensor has nothing of it.
                chunks = [] if value.device_mesh.get_coordinate() is None else value.__create_chunk_list__()
            else:
                chunks = [ChunkStorageMetadata(torch.Size([0] * value.dim()), value.size())]
            items += create_read_items_for_chunk_list(name, told, chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        key = (index.fqn, index.offset)
        if key not in self._found:
            self._found[key] = super().lookup_tensor(index)
        return self._found[key]


def _is_plain(value: Any) -> bool:
    """A dense tensor that is whole, or a DTensor: not one of those that torch takes for shards by attributes of theirs."""
    return type(value) in (torch.Tensor, torch.nn.Parameter, DTensor) and not hasattr(value, "global_offsets")


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

    def make_room() -> Together:
        loaded.update(_room(used, reader.read_metadata(), names, _destination(device)))
        return loaded

    _fill(reader, filename, make_room, _Planner(flatten_state_dict=False))
    return loaded


def load_state_dict(
    state_dict: dict[str, Any],
    filename: Union[str, os.PathLike[str]],
    strict: bool,
    engine: Engine | None,
    **options: Any,
) -> StorageReader:
    """Loads into the tensors of a state dict, as `dcp.load` does, and gives the reader. Raises as `load`."""
    reader = _Reader(filename, share=True, engine=engine, **options)
    state: dict[str, Any] = {}

    # By name, as `dcp.load`: a `Stateful` may have the ranks meet in its calls.
    names = sorted(state_dict)

    def take() -> dict[str, Any]:
        for name in names:
            value = state_dict[name]
            state[name] = value.state_dict() if _is_stateful(value) else value
        return state

    _fill(reader, filename, take, _Planner(allow_partial_load=not strict))
    for name in names:
        value = state_dict[name]
        if _is_stateful(value):
            value.load_state_dict(state[name])
        else:
            # What is no tensor is replaced.
            state_dict[name] = state[name]
    return reader


def _is_stateful(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and isinstance(value, Stateful)


@torch.no_grad()
def _fill(reader: _Reader, filename: Union[str, os.PathLike[str]], take: Any, planner: _Planner) -> None:
    """Reads into the state dict that `take` gives. Nothing of it is touched before every rank has planned."""
    plans: list[LoadPlan] = []

    def plan() -> Any:
        state, metadata = take(), reader.read_metadata()
        alone = not dist.is_initialized()
        planner.set_up_planner(state, metadata, alone or dist.get_rank() == 0)
        reader.set_up_storage_reader(metadata, alone or dist.get_rank() == 0)
        plans.append(reader.prepare_local_plan(planner.create_local_plan()))
        return reader.wants(plans[0])

    if not dist.is_initialized():
        plan()
        reader.read_data(plans[0], planner)
        return
    me, of_all = reader._exchange.begin(os.fspath(filename), plan)
    mine = in_shares(plans, share_out(of_all)[me : me + 1])[0] if len(of_all) > 1 else plans[0]
    reader.read_data(mine, planner)


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
