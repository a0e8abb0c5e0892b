"""Datasets and the loader: which samples there are, and batches of them in memory."""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from . import _errors, _native
from ._native import Batch, Engine, Sample
from ._progress import Progress, shown
from ._reports import Path, _size, _table

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._aio import Caller

StrPath = Union[str, "os.PathLike[str]"]

# Keys that are asked for at once when a dataset is gone through.
_KEYS = 4096


@dataclass(frozen=True)
class DataObject:
    """An object that samples lie in: its address, and what it was when it was indexed."""

    uri: str
    size: int
    format: str
    version: str


@dataclass(frozen=True)
class Place:
    """Where a sample is: its key, its object, and bytes `offset` to `offset + length` there. With a `row`, those are a block that it
    is decoded from. `fields`: name to (offset, length), from the start of the sample."""

    key: str
    object: str
    offset: int
    length: int
    row: int | None
    fields: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Skipped:
    """An object that a scan left out: its address, the kind of the error, and its text."""

    uri: str
    kind: str
    message: str


class Dataset:
    """Samples of existing files: how many there are, where each is, what it is called. Nothing of them is read.

    source: an index file (`straightway dataset index`, or `Dataset.index`), which is opened at once whatever its size; or what such
    an index would be made of, which is scanned: a file, a folder, a pattern (`train-{000..123}.tar`, `*.tar`), or several of them.
    format: raw, tar, tfrecord, mds, npy, npz, parquet or tokens, for all files. None: by name and first bytes.
    column: the column of Parquet files that samples are; of npz files the array (None: every array is a sample); of TFRecord files the
    feature of the `tf.train.Example` in each record, one byte string (None: the record), which reads all bytes.
    on_bad: what a scan does about a file that cannot be indexed. 'fail': raise what is wrong with it. 'skip': leave it out; `skipped`
    tells. 'quarantine=FILE': the same, and a line of JSON for each in that file. Of samples found bad later, `Loader` has its own.
    sidecars: DALI's indexes beside TFRecord files and archives. 'use': where one fits, the file is not walked; samples of TFRecord have
    no checksum then that the loader could compare. 'ignore': walk every file.
    progress: how far a scan is, in files: True for a bar, or a function that gets what is done and what there is in all.

    Raises `NotFound`, `BadFormat` with the file, and what reading returns.
    """

    def __init__(
        self,
        source: StrPath | Iterable[StrPath],
        format: str | None = None,
        column: str | None = None,
        *,
        on_bad: str = "fail",
        sidecars: str = "use",
        engine: Engine | None = None,
        progress: Progress = False,
    ):
        given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
        sources = [name for one in given for name in _expanded(os.fspath(one))]
        self._engine = engine or Engine.shared()
        policy, self._list = _policy(on_bad)
        options = {"format": format, "column": column, "on_bad": policy, "sidecars": sidecars}
        with _listed(self._list) as tell_bad, shown(progress, "scan", "files") as tell:
            self._native = _native.Dataset(self._engine, sources, progress=tell, **options)
            #: What was left out: of a scan with `on_bad`; nothing of an index file.
            self.skipped = tell_bad(self._native.skipped)
        self._made_of, self._process = (sources, options), os.getpid()

    def _here(self) -> Dataset:
        """Itself; in a child of a fork, where the engine it was made with does not work, another one of the same."""
        return self if os.getpid() == self._process else _again(*self._made_of)

    def __reduce__(self):
        return _again, self._made_of

    def __len__(self) -> int:
        return len(self._native)

    def keys(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The keys of samples in their order."""
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(start, end, _KEYS):
            yield from self._native.keys(first, min(first + _KEYS, end))

    def place(self, number: int) -> Place:
        """Where a sample is. Raises `OutOfRange`."""
        key, uri, offset, length, row, parts = self._native.sample(number)
        return Place(key, uri, offset, length, row, {name: (at, size) for name, at, size in parts})

    @property
    def counts(self) -> dict[str, int] | None:
        """What a scan counted: samples, objects, `damaged` (those of `skipped`), `sidecars` and what was not looked at because of them,
        files and members that hold no samples. None for an index file."""
        return self._native.counts

    @property
    def objects(self) -> list[DataObject]:
        """What the samples lie in. Loose files are an object each."""
        return [DataObject(*self._native.object(number)) for number in range(self._native.object_count)]

    def index(self, path: StrPath, *, checksums: bool = False, progress: Progress = False) -> Dataset:
        """Writes the index of a dataset that was scanned, as a whole or not at all, and opens it. Files that cannot be indexed end it or
        are left out as `on_bad` of this dataset says; `skipped` of the new one has them.

        checksums: keep the CRC-32C of every sample, which reads all of them; the loader compares it then.
        progress: as of `Dataset`.
        """
        with _listed(self._list) as tell_bad, shown(progress, "index", "files") as tell:
            _, bad = self._native.write_index(os.fspath(path), checksums=checksums, progress=tell)
            skipped = tell_bad(bad)
        made = Dataset(path, engine=self._engine)
        made.skipped = skipped
        return made

    def __repr__(self) -> str:
        return f"<straightway.{repr(self._native)[1:]}"


def _again(sources: list[str], options: dict[str, Any]) -> Dataset:
    """The same dataset in another process, which keeps no list of its own of what is left out."""
    return Dataset(sources, **options)


def _policy(on_bad: str) -> tuple[str, str | None]:
    """What the compiled half calls a policy, and the file for the list. What is no policy it refuses."""
    name, is_listed, path = on_bad.partition("=")
    return ("skip", path) if name == "quarantine" and is_listed and path else (on_bad, None)


@contextlib.contextmanager
def _listed(path: str | None) -> Iterator[Callable[[list[tuple[str, str, str]]], list[Skipped]]]:
    """Gives what takes a list of objects that were left out, for the file at `path`. That it cannot be written is told before a scan."""
    with contextlib.nullcontext() if path is None else open(path, "w") as file:

        def tell(bad: list[tuple[str, str, str]]) -> list[Skipped]:
            skipped = [Skipped(*one) for one in bad]
            if file is not None:
                file.writelines(json.dumps({"schema": "straightway.dataset.damaged/1", **asdict(one)}) + "\n" for one in skipped)
            return skipped

        yield tell


def _expanded(name: str) -> list[str]:
    """What a pattern of the shell stands for. Braces are the engine's."""
    if "{" in name or not glob.has_magic(name) or os.path.exists(name):
        return [name]
    # A pattern that nothing matches is kept: the error names it.
    return sorted(glob.glob(name, recursive=True)) or [name]


_STAGES = {
    "planning": "asking the index, planning reads",
    "planning_held": "planning waited for memory, or for the caller",
    "reading": "storage",
    "working": "checking, decoding, mapping, copying",
    "ready": "batches lay ready until they were taken",
    "starved": "the caller waited for a batch",
}


@dataclass(frozen=True)
class LoaderStats:
    """What a loader did. Times are seconds summed over batches, which overlap: they say which stage the others wait for."""

    batches: int = 0
    samples: int = 0
    sample_bytes: int = 0
    reads: int = 0
    read_bytes: int = 0
    assembled_bytes: int = 0
    windows: int = 0
    window_samples: int = 0
    opens: int = 0
    left_out: int = 0
    quarantined: int = 0
    read_again: int = 0
    memory_fresh: int = 0
    memory_reused: int = 0
    memory_held_bytes: int = 0
    memory_parked_bytes: int = 0
    planning: float = 0.0
    planning_held: float = 0.0
    reading: float = 0.0
    working: float = 0.0
    ready: float = 0.0
    starved: float = 0.0
    ways: list[Path] = field(default_factory=list)
    #: Samples of a block shuffle that were not read with their window: why, and how many.
    apart: list[tuple[str, int]] = field(default_factory=list)

    def __str__(self) -> str:
        waits = ", ".join(f"{name} {getattr(self, name):.3f} s" for name in _STAGES)
        ways = "; ".join(str(way) for way in self.ways)
        apart = "".join(f"; {samples} samples read apart from their window: {why}" for why, samples in self.apart)
        return f"{self.batches} batches, {self.samples} samples, {self.sample_bytes} bytes; {waits}; {ways}{apart}"

    def _repr_html_(self) -> str:
        counts = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in (*_STAGES, "ways", "apart")]
        title = f"{self.batches} batches, {self.samples} samples, {_size(self.sample_bytes)}"
        stages = [(name, f"{getattr(self, name):.3f}", what) for name, what in _STAGES.items()]
        return (
            _table(title, ("stage", "seconds", "what"), stages)
            + _table("ways of bytes", Path._HEAD, [way._row() for way in self.ways])
            + _table("counts", ("", ""), counts)
            + (_table("samples read apart from their window", ("why", "samples"), self.apart) if self.apart else "")
        )


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be had: which, where, why."""

    dataset: int
    number: int
    object: str
    offset: int
    length: int
    why: str


class Loader:
    """Samples in order, read ahead by threads, as batches in memory.

    dataset: a `Dataset`, a source of one, or a mapping of datasets to weights (whole numbers): a mixture, which has no end.
    batch_size: samples of a batch. drop_last: leave out the last batch of an epoch if it is short; all ranks have equally many then.
    seed, shuffle: the order. True: every order as likely; False: as they are numbered; `"blocks:SAMPLESxBLOCKS"`: blocks of so many
    neighbours, samples mixed within windows of so many blocks, for media that want locality: a window is read as a whole.
    epochs: the epoch to stop before, counted from 0; None: no end.
    rank, world: which of how many processes this is. Each gets its share; all together see the same order at any number.
    tail: what becomes of samples that cannot be dealt evenly to ranks at the end of an epoch: `uneven`: the first ranks get one
    more; `drop`; `repeat`.
    into: `host`, `gpu0`, …. policy: as of `load`.
    layout: `ragged`: samples where reads put them, nothing copied; `padded`, `padded:BYTES`: in places of equal length, the rest
    zero; `fixed`, `fixed:BYTES`: all of one length, end to end.
    map: a function that gets a `Sample` and returns its bytes for the batch (bytes, a numpy array, what has a buffer). Workers call
    it, with the interpreter held. What it raises is raised by the loader, with its traceback and a note that names the sample.
    on_bad: `raise`; `skip` or `skip:N`: leave samples out that cannot be had, at most N (1000); `quarantine`: and do not read
    them again (`quarantined`). leave_out: numbers of samples, or (dataset, number), not to be read.
    memory_bytes: memory that the loader may hold, besides batches that the caller has and one that came back. block_bytes: beside it, of decoded blocks,
    and of a window of a block shuffle and of the next one each. deadline: seconds of a read.
    workers: threads that check, decode, map and copy. ahead: batches on their way at most. join_bytes: of a read that joins
    samples, at most (1 MiB; disks and object stores want more); gap_bytes: between two of them, at most (16 KiB), in memory_bytes too.

    Going through it gives `Batch`, epoch after epoch; `epoch()` ends where the epoch does. A loader that was left in the middle
    goes on there. After an error, the next batch can be asked for. Nothing is read before the first batch is asked for.

    `async for batch in loader` gives the same and leaves the event loop to others while it waits. One task at a time; a batch that
    a cancelled task waited for is the next one that is given.
    """

    def __init__(
        self,
        dataset: Dataset | StrPath | Sequence[StrPath] | Mapping[Dataset, int],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        shuffle: bool | str = True,
        rank: int = 0,
        world: int = 1,
        tail: str = "uneven",
        into: str = "host",
        policy: str = "any",
        layout: str = "ragged",
        map: Callable[[Sample], Any] | None = None,
        on_bad: str = "raise",
        leave_out: Iterable[int | tuple[int, int]] = (),
        memory_bytes: int = 256 << 20,
        block_bytes: int = 64 << 20,
        deadline: float = 60.0,
        drop_last: bool = False,
        workers: int | None = None,
        ahead: int | None = None,
        gap_bytes: int | None = None,
        join_bytes: int | None = None,
        engine: Engine | None = None,
    ):
        if not isinstance(dataset, Mapping):
            dataset = {dataset if isinstance(dataset, Dataset) else Dataset(dataset, engine=engine): 1}
        #: The datasets, in the order of their numbers.
        self.datasets = [one._here() for one in dataset]
        self.batch_size, self.epochs, self.rank, self.world = batch_size, epochs, rank, world
        self._tail, self._drop_last = tail, drop_last
        options: dict[str, Any] = {"workers": workers, "ahead": ahead, "gap_bytes": gap_bytes, "join_bytes": join_bytes}
        options = {name: value for name, value in options.items() if value is not None}
        self._native = _native.Loader(
            engine or self.datasets[0]._engine,
            [(one._native, weight) for one, weight in zip(self.datasets, dataset.values())],
            map,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            shuffle=shuffle,
            rank_of=(rank, world),
            tail=tail,
            into=into,
            policy=policy,
            layout=layout,
            on_bad=on_bad,
            leave_out=[(0, one) if isinstance(one, int) else one for one in leave_out],
            memory_bytes=memory_bytes,
            block_bytes=block_bytes,
            deadline=deadline,
            drop_last=drop_last,
            **options,
        )
        self._caller: Caller | None = None
        # What a task waits for, or a cancelled one waited for: where the caller is without it, and the next step.
        self._pending: tuple[str, Future[Batch | int | None]] | None = None
        self._is_awaited = False
        _open_loaders.add(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while True:
            step = await self._step_async()
            if step is None:
                raise StopAsyncIteration
            if not isinstance(step, int):
                return step

    async def _step_async(self) -> Batch | int | None:
        # Whoever does not await does not import asyncio.
        from . import _aio

        self._check_alone()
        if not self._has_pending():
            state = self._native.state()
            if self._caller is None or self._caller.process != os.getpid():
                self._caller = _aio.Caller(self, "straightway loader")
            # The thread must not keep the loader, whose end is the end of it.
            self._pending = (state, self._caller.begin(partial(_next_of, self._native)))
        assert self._pending is not None
        self._is_awaited = True
        try:
            await _aio.ended(self._pending[1])
        finally:
            self._is_awaited = False
        return self._step()

    def _check_alone(self) -> None:
        if self._is_awaited:
            raise _errors.ApiMisuse("a task waits for the next batch of this loader; give each task a loader of its own")

    def _has_pending(self) -> bool:
        """Whether a step was begun that nobody has got. In a child of a fork its thread is not there."""
        return self._pending is not None and self._caller is not None and self._caller.process == os.getpid()

    def _step(self) -> Batch | int | None:
        self._check_alone()
        if not self._has_pending():
            return _next_of(self._native)
        assert self._pending is not None
        (_, future), self._pending = self._pending, None
        return future.result()

    def __next__(self) -> Batch:
        while True:
            step = self._step()
            if step is None:
                raise StopIteration
            if not isinstance(step, int):
                return step

    def epoch(self) -> Iterator[Batch]:
        """The batches that are left of the current epoch; of a new one if none was taken yet."""
        while True:
            step = self._step()
            if step is None or isinstance(step, int):
                return
            yield step

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches that this rank gets of a whole epoch; None for a mixture, which has none."""
        if len(self.datasets) > 1:
            return None
        even, over = divmod(len(self.datasets[0]), self.world)
        uneven = self.rank < over and not self._drop_last
        more = {"uneven": uneven, "drop": False, "repeat": over > 0}[self._tail]
        samples = even + more
        return samples // self.batch_size if self._drop_last else -(-samples // self.batch_size)

    def __len__(self) -> int:
        """Batches of all epochs that were asked for, for progress bars such as `tqdm(loader)`. Raises `TypeError` where there is no end."""
        of_an_epoch = self.batches_per_epoch
        if of_an_epoch is None or self.epochs is None:
            raise TypeError("a loader without an end has no length")
        return of_an_epoch * self.epochs

    def state_dict(self) -> dict[str, Any]:
        """Where the caller is: after the last batch that it took, whatever was read ahead. The same on every rank that has taken as
        many batches, and good for any number of ranks and any size of batches. Plain numbers and texts."""
        return json.loads(self._pending[0] if self._pending is not None else self._native.state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, exactly. Raises `ApiMisuse` if it is of another dataset, seed or shuffle, at the first batch."""
        self._check_alone()
        if self._has_pending():
            assert self._pending is not None
            # A step that a cancelled task began would go on at the new place: it ends at the old one, and is nobody's.
            self._pending[1].exception()
        self._native.set_state(json.dumps(state))
        self._pending = None

    def seek(self, position: int, epoch: int = 0) -> None:
        """Goes on from a position of the order that all ranks share, which is a number of an epoch's samples. Finds it at once,
        however far it is. Of a mixture, which has no epochs: a position of the whole."""
        state = self.state_dict()
        for kind, cursor in state.items():
            cursor["taken"] = position
            if kind == "dataset":
                cursor["epoch"] = epoch
        self.load_state_dict(state)

    def stats(self) -> LoaderStats:
        """What was done so far: waits of every stage, ways of bytes."""
        return LoaderStats(**self._native.stats())

    @property
    def quarantined(self) -> list[BadSample]:
        """Samples that were put on the quarantine list."""
        return [BadSample(*row) for row in self._native.quarantined()]

    def close(self) -> None:
        """Ends its threads. Batches stay whole; state and statistics can still be asked for."""
        self._native.close()
        _open_loaders.discard(self)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        of = ", ".join(map(repr, self.datasets))
        return f"<straightway.Loader of {of}, batches of {self.batch_size}, rank {self.rank} of {self.world}>"


def _next_of(loader: _native.Loader) -> Batch | int | None:
    try:
        return loader.next()
    except _errors.Closed:
        # A thread that is still at it when the interpreter ends is done.
        if _is_exit:
            return None
        raise


_open_loaders: weakref.WeakSet[Loader] = weakref.WeakSet()
_is_exit = False
# Until a thread has seen that its loader is closed: some slices of a wait, of 50 ms each.
_EXIT_S = 5.0


@atexit.register
def _close_all() -> None:
    # Workers that call a map function must be gone before the interpreter is.
    global _is_exit
    _is_exit = True
    for loader in list(_open_loaders):
        try:
            loader.close()
            if loader._caller is not None:
                # It takes the interpreter once more, to say that the loader is closed.
                loader._caller.join(_EXIT_S)
        except RuntimeError:
            # In a child of a fork it is the parent's.
            pass
