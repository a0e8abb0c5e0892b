"""`torch.distributed.checkpoint` by the engine: a reader and a writer to give to `load`, `save` and `async_save`.

>>> import torch.distributed.checkpoint as dcp
>>> from straightway.torch.checkpoint import StorageReader, StorageWriter
>>> dcp.save(state, storage_writer=StorageWriter("/checkpoints/100"))
>>> dcp.load(state, storage_reader=StorageReader("/checkpoints/100"))

The files are those of torch: its own reader and writer open ours, and the reverse.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import pickle
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Union

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import _errors
from .._native import Buffer, Checks, Engine, Object, PendingCheckpoint
from .._reports import Path, SaveReport
from . import _NAMES, _blob, _boxes, _bytes_of, _raw, _stage, from_buffer
from ._share import Exchange, Reads, Share, Want, cut, share_out, wants_of

__all__ = ["StorageReader", "StorageWriter", "drop_staging"]

# Runs of at least this many bytes are read in place one by one; shorter ones by one read of all that lies between the first and
# the last, which is then cut in memory. About what a disk of 1.4 GiB/s moves in the time of one more random read.
RUN_MIN_BYTES = 64 << 10
# Memory for what cannot be read in place, in bytes: a load stops to copy when it is full. Longer tensors go through it in pieces.
STAGING_BYTES = 256 << 20
STAGED_PIECE_BYTES = 64 << 20
# Memory through which what torch is going to read is compared, in bytes.
SCRATCH_BYTES = 8 << 20
# Seconds that a save in the background leaves the interpreter to the caller that it was started by, who has it back after a thread
# switch otherwise, five milliseconds later or more.
GIVE_WAY_S = 0.001
# Files that a load has open at once, each with up to two descriptors: a checkpoint may have more files than a process may open
# (1,024 descriptors are usual).
FILES_OPEN_MAX = 128

_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path", "PurePath"},
    "collections": {"OrderedDict", "defaultdict"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of a checkpoint's metadata and nothing else: a pickle from outside calls only those."""

    def find_class(self, module: str, name: str) -> Any:
        # pathlib is a package from Python 3.13 on, and its pickles name the modules inside.
        module = "pathlib" if module.startswith("pathlib.") else module
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's metadata")


class StorageReader(FileSystemReader):
    """Reads a DCP directory, each rank only the bytes that it needs, straight into the destination tensors.

    path: the directory; or safetensors (a file, an index, a directory of either), or a file of `torch.save`, whose heads each rank reads.
    share: ranks that want the same bytes as the same type read them once and exchange them: on one machine each copies out of the memory
        of the rank that read them, elsewhere the process group carries them. Before the exchange and behind it they agree that all
        went well: an error of one rank is raised on all of them. Rows that some ranks want and others do not become items of their
        own: a planner resolves and commits pieces then.
    process_group: that of the load, if it is not that of all ranks.
    timeout: seconds that a rank waits for the others, so give more than the ranks' times of reading differ by. A rank that died
        is an error on the others within it.
    policy: which routes are accepted.
    verify: whether what is read is compared with the checksums beside the checkpoint: `auto`, where there are some and little else
        must be read for it; `off`; or `require`: every byte, and `NotFound` without checksums. Damage is `ChecksumMismatch`, with
        `share` on all ranks.

    After a load, `verified_bytes` lie in chunks that were compared, `unverified_bytes` were read and not compared, and `verification`
    is `compared`, `none` without checksums, or `off`. `ways` has the way of every byte read, `read_bytes` their sum, `exchanged` what
    other ranks read, `staged` the names of tensors that could not be read in place (strided destinations, other types), and `by_torch`
    those that torch read, because they are not stored as plain tensors.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        share: bool = False,
        process_group: dist.ProcessGroup | None = None,
        timeout: float = 60.0,
        policy: str = "any",
        verify: str = "auto",
        engine: Engine | None = None,
    ):
        super().__init__(path)
        if verify not in ("auto", "off", "require"):
            raise _errors.new("api_misuse", f"verify is {verify!r}; give auto, off or require")
        self._engine = engine or Engine.shared()
        self._policy = policy
        self._verify = verify
        self._share = share
        self._exchange = Exchange(process_group, timeout)
        self._objects: dict[str, Object] = {}
        self._chunks: dict[tuple[str, tuple[int, ...] | None], tuple[torch.dtype, tuple[int, ...]]] = {}
        # What lies where, of a checkpoint that is none of DCP.
        self._raw: dict[tuple[str, int], _blob.Blob] = {}
        self._forget()

    def _forget(self) -> None:
        self.ways: list[Path] = []
        self.staged: list[str] = []
        self.by_torch: list[str] = []
        self._checks: Checks | None = None
        self._blobs: dict[tuple[str, int], _blob.Blob | None] = dict(self._raw)
        self._locator = _blob.Locator()
        self._exchange.forget()

    @property
    def verification(self) -> str:
        """Whether what was read was `compared` with checksums, there are `none`, or it was `off`."""
        return self._checks.verification if self._checks else self._verify if self._verify == "off" else "none"

    @property
    def verified_bytes(self) -> int:
        """Bytes in the chunks that this rank compared; parts of them may not have been wanted."""
        return self._checks.totals[0] if self._checks else 0

    @property
    def unverified_bytes(self) -> int:
        """Bytes that were read and not compared, heads aside."""
        return self._checks.totals[1] if self._checks else 0

    @property
    def exchanged(self) -> dict[str, int]:
        """Bytes that another rank read for this one, by how they came here: `memory` of the other process, or `group`."""
        return {"memory": self._exchange.from_memory, "group": self._exchange.from_group}

    @property
    def why_group(self) -> str:
        """Why not all of them came straight out of the other rank's memory; empty if they did."""
        return self._exchange.why_group

    @property
    def read_bytes(self) -> int:
        """Bytes that this rank read, headers included."""
        return sum(way.bytes for way in self.ways)

    def reset(self, checkpoint_id: Union[str, os.PathLike[str], None] = None) -> None:
        """As the original."""
        super().reset(checkpoint_id)
        self._objects.clear()
        self._raw = {}
        self._forget()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As the original, with an unpickler that knows the classes of metadata only. Raises `BadFormat`."""
        if _raw.is_raw(os.fspath(self.path)):
            metadata, self._raw = _raw.read(self._engine, os.fspath(self.path))
            metadata.storage_meta.load_id = self.load_id
            return metadata
        path = os.fspath(self._get_metadata_path(kwargs.get("rank")))
        with self._engine.open(path) as file:
            content = file.read().tobytes()
        try:
            metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        except Exception as cause:
            raise _errors.new("bad_format", f"parse {path} failed: {cause}; look at who wrote the checkpoint", path) from cause
        if not isinstance(metadata, Metadata):
            raise _errors.new("bad_format", f"parse {path} failed: it has no checkpoint's metadata", path)
        files: set[str] = set()
        for info in (metadata.storage_data or {}).values():
            if not _is_place(info, files):
                text = f"parse {path} failed: {info} is no range of a file below the directory; it was not opened"
                raise _errors.new("bad_format", text, path)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """As the original."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._forget()
        self._chunks.clear()
        for name, described in metadata.state_dict_metadata.items():
            for chunk in getattr(described, "chunks", ()):
                facts = (described.properties.dtype, tuple(chunk.sizes))
                self._chunks[name, tuple(chunk.offsets)] = facts
                if len(described.chunks) == 1:
                    self._chunks[name, None] = facts

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """With `share`: each range that several ranks want is read by one of them."""
        if not self._share or len(plans) < 2:
            return plans
        return in_shares(plans, share_out([self.wants(plan) for plan in plans]))

    def wants(self, plan: LoadPlan) -> list[Want]:
        """What a rank's plan asks for, for `share_out`."""
        return wants_of(plan.items, self._item_bytes)

    def _item_bytes(self, item: ReadItem) -> int:
        """Bytes of an element as it is stored."""
        known = self._known(item)
        return known[0].itemsize if known else 1

    def _known(self, item: ReadItem) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Type and shape that the metadata tells of an item's chunk."""
        index = item.storage_index
        return self._chunks.get((index.fqn, index.offset and tuple(index.offset)))

    @torch.no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads, exchanges what is shared, and gives everything to the planner."""
        if isinstance(plan.storage_data, Share):
            reads = Reads(lambda items: self._read(items, planner), self._place, self._partials, self._compare_with)
            self._exchange.run(os.fspath(self.path), plan, planner, reads)
        else:
            self._read(plan.items, planner)
            self._compare()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _place(self, item: ReadItem) -> tuple[str, int]:
        info = self.storage_data[item.storage_index]
        return info.relative_path, info.offset

    @property
    def _folder(self) -> str:
        path = os.fspath(self.path)
        return path if os.path.isdir(path) else os.path.dirname(path)

    def _object(self, name: str) -> Object:
        if name not in self._objects:
            self._objects[name] = self._engine.open(os.path.join(self._folder, name))
        return self._objects[name]

    def _checked(self, info: Any) -> Object:
        """The file of a place that lies in it: nothing is allocated because metadata claims a length."""
        file = self._object(info.relative_path)
        if info.offset + info.length > file.size:
            text = f"bytes {info.offset}+{info.length} lie past the object {file.name} of {file.size}; the copy is incomplete"
            raise _errors.new("bad_format", f"{text}, so fetch it again", file.name)
        return file

    def _checking(self) -> Checks:
        if self._checks is None:
            self._checks = Checks(self._engine, self._folder, self._verify)
        return self._checks

    def _read_many(self, parts: list[tuple[str, int, Any]]) -> None:
        """Reads `(file, offset, target)`."""
        opened = [(self._object(name), name, offset, target) for name, offset, target in parts]
        self.ways += self._checking().read_many(opened, policy=self._policy)

    def _open_few(self, names: Sequence[str]) -> None:
        """Makes room for these files to be open."""
        if len(self._objects.keys() | set(names)) > FILES_OPEN_MAX:
            self._objects.clear()

    def _compare(self) -> None:
        """Compares what was read with the checksums, as far as it was not when it was read."""
        for name in self._checking().waiting():
            self._open_few([name])
            self.ways += self._checking().complete(self._object(name), name)

    def _partials(self) -> list[tuple[str, int, int, int]]:
        """What was seen of chunks that were not seen whole, for the other ranks."""
        return self._checking().take_partials()

    def _compare_with(self, me: int, of_all: list[list[tuple[str, int, int, int]]]) -> None:
        """Compares what ranks have seen together."""
        self._checking().join_partials(me, of_all)
        self._compare()

    def _read(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        try:
            self._read_all(items, planner)
        except _errors.ChecksumMismatch:
            raise
        except Exception as error:
            # Damage may show itself as anything, in a head or a pickle: what it is is told first.
            try:
                self._compare()
            except _errors.ChecksumMismatch as damaged:
                raise damaged from error
            except Exception:
                pass
            raise

    def _read_all(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        of_files: dict[str, list[tuple[ReadItem, Any]]] = {}
        for item in items:
            info = self.storage_data[item.storage_index]
            of_files.setdefault(info.relative_path, []).append((item, info))
        strange: list[ReadItem] = []
        names = sorted(of_files)
        for at in range(0, len(names), FILES_OPEN_MAX):
            some = names[at : at + FILES_OPEN_MAX]
            self._open_few(some)
            pairs = itertools.chain.from_iterable(sorted(of_files[name], key=lambda pair: pair[1].offset) for name in some)
            strange += self._read_files(list(pairs), planner)
        if strange:
            self.by_torch += [item.storage_index.fqn for item in strange]
            self._see(strange)
            super().read_data(LoadPlan(strange), planner)

    def _see(self, items: list[ReadItem]) -> None:
        """Compares what torch is going to read."""
        scratch = None
        infos = {self._place(item): self.storage_data[item.storage_index] for item in items}
        for (name, offset), info in sorted(infos.items(), key=lambda pair: pair[0]):
            self._open_few([name])
            file = self._checked(info)
            if self._checking().verification != "compared":
                self._checking().not_seen(file, name, offset, info.length)
                continue
            scratch = scratch or self._engine.allocate(SCRATCH_BYTES)
            for at in range(offset, offset + info.length, SCRATCH_BYTES):
                size = min(SCRATCH_BYTES, offset + info.length - at)
                self._read_many([(name, at, scratch.view("U8", [size]))])

    def _read_files(self, pairs: list[tuple[ReadItem, Any]], planner: LoadPlanner) -> list[ReadItem]:
        """Reads items of few files, in that order; gives back what is not stored as a plain tensor."""
        blobs = self._locate(pairs)
        strange: list[ReadItem] = []
        batch = _Batch()
        for item, info in pairs:
            place = (info.relative_path, info.offset)
            if getattr(info, "transform_descriptors", None):
                strange.append(item)
            elif item.type == LoadItemType.BYTE_IO:
                self._checked(info)
                batch.bytes(info, lambda value, item=item: planner.load_bytes(item, value))
            elif blobs.get(place) is None:
                strange.append(item)
            else:
                self._tensor(batch, blobs[place], item, info, planner)
            if batch.staged >= STAGING_BYTES:
                self._flush(batch)
        self._flush(batch)
        return strange

    def _locate(self, pairs: list[tuple[ReadItem, Any]]) -> dict[tuple[str, int], _blob.Blob | None]:
        """Where the tensors lie in their blobs: one small read each, all at once."""
        lengths = {}
        for item, info in pairs:
            place = (info.relative_path, info.offset)
            if place not in self._blobs and item.type != LoadItemType.BYTE_IO and not getattr(info, "transform_descriptors", None):
                self._checked(info)
                lengths[place] = info.length
        if not lengths:
            return self._blobs
        heads = self._engine.allocate(len(lengths) * _blob.HEAD_BYTES)
        parts, places = [], []
        for n, ((name, offset), length) in enumerate(sorted(lengths.items())):
            size = min(_blob.HEAD_BYTES, length)
            parts.append((self._object(name), offset, heads.view("U8", [size], n * _blob.HEAD_BYTES)))
            places.append(((name, offset), n * _blob.HEAD_BYTES, size, length))
        # Not by way of the checks: what is read of a head is read again, with what its chunk lacks, to be compared.
        self.ways += self._engine.read_many(parts, policy=self._policy)
        view = memoryview(heads)
        self._blobs |= {place: self._locator.locate(view[at : at + size], length) for place, at, size, length in places}
        return self._blobs

    def _tensor(self, batch: _Batch, blob: _blob.Blob, item: ReadItem, info: Any, planner: LoadPlanner) -> None:
        target = planner.resolve_tensor(item).detach()
        lengths, offsets = list(item.lengths), list(item.storage_offsets)
        if list(target.shape) != lengths or len(lengths) != len(blob.shape):
            raise AssertionError(f"req {item.storage_index} mismatch sizes {target.size()} vs {torch.Size(lengths)}")
        known = self._known(item)
        if known is not None and known != (blob.dtype, blob.shape):
            text = f"{item.storage_index} is {blob.dtype} {list(blob.shape)} in {info.relative_path}, the metadata says {known[0]} "
            text += f"{list(known[1])}; files of two checkpoints are mixed, or one is damaged"
            raise _errors.new("bad_format", text, info.relative_path)
        if any(at < 0 or at + size > dim for at, size, dim in zip(offsets, lengths, blob.shape)):
            raise _errors.new("out_of_range", f"{item.storage_index} asks for {lengths} at {offsets} of {blob.shape}", info.relative_path)
        if math.prod(lengths) == 0:
            batch.after.append(lambda: planner.commit_tensor(item, target))
            return
        base, name = info.offset + blob.at, info.relative_path
        plain = target.dtype == blob.dtype and target.layout == torch.strided and target.device.type in ("cpu", "cuda")
        runs = list(_runs(blob, offsets, lengths, target)) if plain else []
        if runs:
            if target.is_cuda:
                torch.cuda.current_stream(target.device).synchronize()
            for source, place, count in runs:
                flat = torch.as_strided(target, (count,), (1,), place).view(torch.uint8)
                batch.parts.append((name, base + source * blob.dtype.itemsize, flat))
            batch.after.append(lambda: planner.commit_tensor(item, target))
            return
        self.staged.append(item.storage_index.fqn)
        strides = _boxes.dense(blob.shape)
        for starts, sizes in _boxes.pieces(lengths, strides, STAGED_PIECE_BYTES // blob.dtype.itemsize):
            first = sum((at + start) * stride for at, start, stride in zip(offsets, starts, strides))
            held = self._engine.allocate(_boxes.span(sizes, strides) * blob.dtype.itemsize)
            batch.staged += held.nbytes
            batch.parts.append((name, base + first * blob.dtype.itemsize, held))
            part = target if sizes == lengths else target[tuple(slice(at, at + size) for at, size in zip(starts, sizes))]

            def copy(part: torch.Tensor = part, held: Buffer = held, sizes: list[int] = sizes) -> None:
                part.copy_(torch.as_strided(from_buffer(held).view(blob.dtype), sizes, strides, 0))

            batch.after.append(copy)
            if batch.staged >= STAGING_BYTES:
                self._flush(batch)
        batch.after.append(lambda: planner.commit_tensor(item, target))

    def _flush(self, batch: _Batch) -> None:
        self._read_many(batch.parts)
        for act in batch.after:
            act()
        batch.clear()


def in_shares(plans: Sequence[LoadPlan], shares: Sequence[tuple[dict[int, list[int]], Share]]) -> list[LoadPlan]:
    """Plans with what `share_out` has made of them."""
    pairs = zip(plans, shares)
    return [dataclasses.replace(plan, items=cut(plan.items, cuts), storage_data=share) for plan, (cuts, share) in pairs]


class _Batch:
    """Reads that go together, and what is done when they are there."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.parts: list[tuple[str, int, Any]] = []
        self.after: list[Any] = []
        self.staged = 0

    def bytes(self, info: Any, take: Any) -> None:
        value = bytearray(info.length)
        self.parts.append((info.relative_path, info.offset, value))
        self.staged += info.length
        self.after.append(lambda: take(io.BytesIO(value)))


def _is_place(info: Any, files: set[str]) -> bool:
    """Whether metadata names a range of a file below the directory; `files` are those of which that is known."""
    if not isinstance(info, _StorageInfo) or not isinstance(info.relative_path, str):
        return False
    if info.relative_path not in files:
        parts = info.relative_path.split("/")
        if not all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts):
            return False
        files.add(info.relative_path)
    return all(isinstance(number, int) and number >= 0 for number in (info.offset, info.length))


def _runs(blob: _blob.Blob, offsets: list[int], lengths: list[int], target: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """(element in the blob, element in the target's storage, count) of each run that is contiguous in both; nothing if runs are
    too short to be read one by one."""
    strides, run, outer = _boxes.dense(blob.shape), 1, len(lengths)
    if target.is_contiguous() and lengths[1:] == list(blob.shape[1:]):
        # Whole rows, as most are.
        yield offsets[0] * strides[0] if lengths else 0, target.storage_offset(), math.prod(lengths)
        return
    while outer > 0:
        dim = outer - 1
        if lengths[dim] != 1 and target.stride(dim) != run:
            break
        run *= lengths[dim]
        outer = dim
        if lengths[dim] != blob.shape[dim]:
            break
    count = math.prod(lengths[:outer])
    if run == 0 or (count > 1 and run * blob.dtype.itemsize < RUN_MIN_BYTES):
        return
    base = sum(at * stride for at, stride in zip(offsets, strides))
    for index in itertools.product(*(range(length) for length in lengths[:outer])):
        source = base + sum(at * stride for at, stride in zip(index, strides))
        place = target.storage_offset() + sum(at * target.stride(dim) for dim, at in enumerate(index))
        yield source, place, run


class _Written(list[WriteResult]):
    """What a rank has written, as torch gathers it, with the rank's part for the commit."""

    part = b""


@dataclasses.dataclass
class _Place:
    """Where a rank writes: its part of the plan that the coordinator makes."""

    directory: str
    rank: int
    world: int


# What a directory may have that a save takes the place of: files of a checkpoint, of torch or of ours.
_OURS = re.compile(r"\.metadata|__\d+_\d+\.distcp|straightway\.checksums\.json")


def _make(folder: str) -> None:
    """A directory and those above it; their names are durable."""
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    handle = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StorageWriter(FileSystemWriter):
    """Writes a DCP directory, which appears whole and durable, with checksums beside the data, or not at all.

    path: the directory. Those above it are made. The files are made in a hidden directory beside it, which gets the name as the last
        step, so a crash or a failed rank leaves what was there before.
    overwrite: whether a checkpoint of that name may be there; the new one takes its place in that last step. A directory with
        other files than those of a checkpoint is refused: give each checkpoint a directory of its own.
    policy: which routes are accepted.
    incremental: the path of an earlier checkpoint that was written with `incremental`: files that are as there become links to them
        (copies where the file system has no links). True for the first one.
    file_bytes: most bytes of tensors in one file of a rank; without it a rank has one file. What is linked is a file, so tensors that
        stay as they are should be in files of their own.

    cache_staged_state_dict: whether staging memory is kept for the next save of this process, by whatever writer. Then that one's
        caller waits for the copy alone, and the memory of the largest state saved stays taken: `drop_staging` gives it back.
    staging_bytes: most bytes that staged copies may take, those of saves that are not through among them; None for as much as
        there is to save. A save that would need more fails on all ranks, with `ResourceLimit` in torch's `CheckpointException`,
        and has copied nothing.

    After a save, `report` tells where this rank's bytes went. For `async_save` it stages on the CPU (see `stage`); `stall` has the
    seconds that the last staging held the caller.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        policy: str = "any",
        overwrite: bool = True,
        cache_staged_state_dict: bool = False,
        incremental: Union[bool, str, os.PathLike[str]] = False,
        file_bytes: int | None = None,
        staging_bytes: int | None = None,
        engine: Engine | None = None,
    ):
        super().__init__(path, overwrite=overwrite, cache_staged_state_dict=cache_staged_state_dict)
        since = ("" if incremental else None) if isinstance(incremental, bool) else os.fspath(incremental)
        self._layout: dict[str, Any] = {"since": since, "file_bytes": file_bytes}
        self._engine = engine or Engine.shared()
        self._policy = policy
        self._pending: PendingCheckpoint | None = None
        self._stage = _stage.Stage(engine, staging_bytes)
        self._staging_bytes = staging_bytes
        # Why nothing was staged: the ranks are told when they agree.
        self._refused: Exception | None = None
        self._staged = False
        self.report: SaveReport | None = None
        self.stall = 0.0

    def _give_up(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.abandon()

    def reset(self, checkpoint_id: Union[str, os.PathLike[str], None] = None) -> None:
        """As the original. A save that did not end is given up."""
        if self._staged:
            time.sleep(GIVE_WAY_S)
        super().reset(checkpoint_id)
        self._give_up()
        self.report = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """As the original. Raises `Unsupported` without collectives: then no rank knows when all are through; and what kept this
        rank from staging."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused
        if not self.use_collectives:
            text = f"save {self.path} failed: a checkpoint appears as a whole, which needs use_collectives=True"
            raise _errors.new("unsupported", text, os.fspath(self.path))

    def stage(self, state_dict: Any) -> Any:
        """A copy of the state dict on the CPU, in memory with huge pages: out of GPUs through 1 MiB of pinned memory for each of at
        most four threads. One with sparse, quantized or nested tensors, or with a `ShardedTensor`, is copied by torch, as the
        original does.

        What may not be copied comes out as it is: the save then fails on all ranks, when they plan."""
        started = time.monotonic()
        self._staged, self._refused = True, None
        try:
            staged = self._stage.copy(state_dict, keep=self.cache_staged_state_dict, type_check=self.type_check)
        except _stage.NotOurs:
            if self._staging_bytes is None:
                staged = super().stage(state_dict)
            else:
                text = "stage tensors failed: only torch's stager copies sparse, quantized and nested ones, and it has no limit"
                self._refused = _errors.new("unsupported", f"{text}; make them dense, or save without staging_bytes")
                staged = state_dict
        except _errors.ResourceLimit as error:
            # Not raised here: the other ranks would wait for this one. They hear of it when they plan.
            self._refused = error
            staged = state_dict
        self.stall = time.monotonic() - started
        return staged

    def prepare(self, state_dict: Any) -> None:
        """Makes the memory that a copy of `state_dict` takes, in the background, for the next `async_save` by any writer of this
        process: then its caller waits for the copy alone. Call it when the tensors are there, before the first save. Without
        `cache_staged_state_dict` it serves one save. Nothing is made where torch's stager will copy.

        Raises `ResourceLimit` for more than `staging_bytes`.
        """
        with contextlib.suppress(_stage.NotOurs):
            self._stage.prepare(state_dict)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing is made under the final name."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Begins the checkpoint and tells the ranks where."""
        self._give_up()
        path = os.path.abspath(os.fspath(self.path))
        strange = [name for name in os.listdir(path) if not _OURS.fullmatch(name)] if os.path.isdir(path) else []
        if strange:
            text = f"save {path} failed: {strange[0]!r} in it is no file of a checkpoint; give each checkpoint a directory of its own"
            raise _errors.new("already_exists", text, path)
        _make(os.path.dirname(path))
        self._pending = PendingCheckpoint.begin(self._engine, path, if_exists=self._if_exists())
        directory = os.fspath(self._pending.directory)
        places = [_Place(directory, rank, len(plans)) for rank in range(len(plans))]
        return [dataclasses.replace(plan, storage_data=place) for plan, place in zip(plans, places)]

    def _if_exists(self) -> str:
        return "replace" if self.overwrite else "refuse"

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes what this rank has; it is durable when this returns."""
        place: _Place = plan.storage_data
        pending = self._pending or PendingCheckpoint.join(self._engine, place.directory)
        seen: list[torch.Tensor] = []
        try:
            tensors, objects = self._contents(plan, planner, seen)
            part, entries, self.report = pending.write((place.rank, place.world), tensors, objects, policy=self._policy, **self._layout)
        except BaseException:
            self._give_up()
            raise
        finally:
            self._stage.through(seen)
        places = {name: _StorageInfo(file, offset, length) for name, file, offset, length in entries}
        written = _Written()
        written.part = part
        for number, item in enumerate(plan.items):
            info = places[f"{number} {item.index.fqn}"]
            written.append(WriteResult(item.index, info.length, info))
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done

    def _contents(self, plan: SavePlan, planner: SavePlanner, seen: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
        """What the engine writes, and what `torch.save` makes bytes of; `seen` has the tensors of both."""
        tensors, objects = [], []
        for number, item in enumerate(plan.items):
            data, name = planner.resolve_data(item), f"{number} {item.index.fqn}"
            if isinstance(data, torch.Tensor):
                seen.append(data)
            if isinstance(data, torch.Tensor) and data.layout == torch.strided and data.dtype in _PLAIN:
                data = data.detach().contiguous()
                tensors.append((name, _PLAIN[data.dtype], list(data.shape), _bytes_of(data)))
            else:
                objects.append((name, _saved(data)))
        return tensors, objects

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Adds `.metadata` and checksums, and gives the directory its name."""
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        metadata.storage_meta = self.storage_meta()
        pending, self._pending = self._pending, None
        if pending is None:
            raise _errors.new("api_misuse", "finish without a save that was begun; use torch.distributed.checkpoint.save")
        parts = [getattr(rank, "part", b"") for rank in results]
        pending.commit(parts, [(".metadata", pickle.dumps(metadata))], if_exists=self._if_exists())


def drop_staging(engine: Engine | None = None) -> int:
    """Gives back the staging memory that writers with this engine (None: without one of their own) have kept for the next save, or
    made ahead; returns how many bytes."""
    return _stage.pool_of(engine).drop()


# Element types that the engine writes as `torch.save` would; other tensors go in as what `torch.save` makes of them.
_PLAIN = {dtype: name for dtype, name in _NAMES.items() if name != "F4"}


def _saved(data: Any) -> bytes:
    if isinstance(data, io.BytesIO):
        return data.getvalue()
    content = io.BytesIO()
    torch.save(data.detach().cpu() if isinstance(data, torch.Tensor) else data, content)
    return content.getvalue()
