"""Straightway: bytes between storage and accelerator memory, and which path each of them took.

>>> import straightway
>>> tensors = straightway.load_file("model.safetensors")        # name -> Buffer, shared with numpy or torch
>>> print(tensors.report)                                       # the way of every byte
>>> with straightway.open("/data/shard-0") as shard:            # any object, any range
...     head = shard.read(0, 4096)
>>> for batch in straightway.Loader("train-{000..123}.tar", batch_size=64):
...     first = batch.fields(0)["jpg"]                          # a view: nothing was copied

`straightway.numpy` and `straightway.torch` have the functions of `safetensors.numpy` and `safetensors.torch`. Nothing here
imports numpy or torch by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

from . import _errors
from ._errors import *  # noqa: F403
from ._errors import Error
from ._data import BadSample, Dataset, Loader, LoaderStats
from ._native import Batch, Buffer, Checkpoint, Engine, NewObject, Object, Operation, Sample, Steps, __version__
from ._open import safe_open
from ._progress import Progress, shown
from ._reports import Candidate, Doctor, Fact, FileReport, LoadReport, Path, Plan, SaveReport

if TYPE_CHECKING:
    StrPath = Union[str, os.PathLike[str]]

__all__ = [
    "BadSample",
    "Batch",
    "Buffer",
    "Candidate",
    "Checkpoint",
    "Dataset",
    "Doctor",
    "Engine",
    "Error",
    "Fact",
    "FileReport",
    "LoadReport",
    "Loader",
    "LoaderStats",
    "NewObject",
    "Object",
    "Operation",
    "Path",
    "Plan",
    "Sample",
    "SaveReport",
    "Steps",
    "Tensors",
    "__version__",
    "doctor",
    "engine",
    "load",
    "load_async",
    "load_file",
    "open",
    "plan",
    "safe_open",
    "save",
    "save_async",
    "save_file",
    *_errors.__all__,
]


def engine() -> Engine:
    """The engine that this process shares: what the functions of this module use when none is given."""
    return Engine.shared()


def open(uri: StrPath, *, engine: Engine | None = None) -> Object:
    """Opens a path or an address to read.

    Raises `NotFound`, `PermissionDenied`, `WrongKind`, `BadUri`, and what the system reports.
    """
    return (engine or Engine.shared()).open(uri)


def plan(uri: StrPath, into: str = "host", *, policy: str = "any", engine: Engine | None = None) -> Plan:
    """Every route that a read of `uri` into that memory could take, and why not a better one. Reads nothing."""
    return open(uri, engine=engine).plan(into, policy)


def doctor(*, engine: Engine | None = None) -> Doctor:
    """What this machine can do, and what to change."""
    return (engine or Engine.shared()).doctor()


class Tensors(dict):
    """Tensors by name, as `dict`, and in `report` the way that their bytes took."""

    report: LoadReport

    def __init__(self, tensors: Iterable[tuple[str, Any]], report: LoadReport):
        super().__init__(tensors)
        self.report = report

    def __repr__(self) -> str:
        return f"<straightway.Tensors {len(self)} tensors, {self.report}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


_CONVERTERS = {
    "numpy": "numpy",
    "np": "numpy",
    "torch": "torch",
    "pt": "torch",
    "pytorch": "torch",
}


def _converter(framework: str | None):
    if framework is None:
        return lambda buffer: buffer
    name = _CONVERTERS.get(framework)
    if name == "numpy":
        from .numpy import from_buffer
    elif name == "torch":
        from .torch import from_buffer
    else:
        raise ValueError(f"framework {framework!r} is not one of numpy, torch, None")
    return from_buffer


def _destination(device: Any) -> str:
    """The engine's name of a device as frameworks write it: cpu, cuda, cuda:1, 1."""
    if isinstance(device, int):
        return f"gpu{device}"
    text = str(device)
    if text == "cpu":
        return "host"
    if text == "cuda":
        return "gpu0"
    if text.startswith("cuda:"):
        return "gpu" + text[len("cuda:") :]
    return text


def load(
    uri: StrPath,
    device: Any = "cpu",
    *,
    tensors: str | Iterable[str] | None = None,
    policy: str = "any",
    verify: str = "auto",
    framework: str | None = None,
    engine: Engine | None = None,
    progress: Progress = False,
) -> Tensors:
    """Loads a checkpoint: a file, an index, or a directory with one of them.

    device: `cpu`, `cuda`, `cuda:N`, N, or a name of the engine's such as `gpu0`.
    tensors: a pattern such as `"model.layers.0.*,lm_head*"`, or names. None: all.
    policy: `any`, `prefer=ROUTE`, `require=ROUTE`, `require-core=ROUTE`; a demand that cannot be met is `PolicyUnmet`.
    verify: whether checksums beside the checkpoint are compared: `auto`, where there are some and little else must be read for it;
        `off`; or `require`: every byte, and `NotFound` without checksums. `report.files` tell how far.
    framework: `numpy` or `torch` for their arrays; None for `Buffer`, which both of them take without a copy.
    progress: how far it is, in bytes: True for a bar, or a function that gets what has arrived and what there is in all.

    The memory of all tensors of a file is one region. It stays as long as one of them lives.
    Raises `BadFormat` with file and tensor, `ChecksumMismatch`, `NotFound`, `PolicyUnmet`, and what reading returns; nothing comes back half.
    """
    chosen = tensors if tensors is None or isinstance(tensors, str) else list(tensors)
    used = engine or Engine.shared()
    convert = _converter(framework)
    with shown(progress, os.path.basename(os.fspath(uri)), "B") as tell:
        options = {"tensors": chosen, "policy": policy, "verify": verify, "progress": tell}
        loaded, report = used.load(uri, into=_destination(device), **options)
    return Tensors(((name, convert(buffer)) for name, buffer in loaded), report)


async def load_async(
    uri: StrPath,
    device: Any = "cpu",
    *,
    tensors: str | Iterable[str] | None = None,
    policy: str = "any",
    verify: str = "auto",
    framework: str | None = None,
    engine: Engine | None = None,
    progress: Progress = False,
) -> Tensors:
    """As `load`, in a thread of the event loop's executor; `progress` is called there.

    A task that is cancelled ends at once, and the load a little later, where it would next report progress; what it had read is dropped.
    """

    from . import _aio

    def run(tell: Callable[[int, int], object]) -> Tensors:
        options = {"tensors": tensors, "policy": policy, "verify": verify, "framework": framework, "progress": tell}
        return load(uri, device, engine=engine, **options)

    return await _aio.while_wanted(run, progress, os.path.basename(os.fspath(uri)))


def load_file(
    path: StrPath,
    device: Any = "cpu",
    *,
    tensors: str | Iterable[str] | None = None,
    policy: str = "any",
    verify: str = "auto",
    framework: str | None = None,
    engine: Engine | None = None,
    progress: Progress = False,
) -> Tensors:
    """Loads one `.safetensors` file. As `load`, which takes directories and indexes too."""
    options = {"tensors": tensors, "policy": policy, "verify": verify, "framework": framework, "progress": progress}
    return load(path, device, engine=engine, **options)


def _described(tensors: Mapping[str, Any]) -> list[tuple[str, str, list[int], Any]]:
    rows = []
    for name, tensor in tensors.items():
        if isinstance(tensor, Buffer):
            rows.append((name, tensor.dtype, list(tensor.shape), tensor))
        elif type(tensor).__module__.partition(".")[0] == "torch" or hasattr(tensor, "untyped_storage"):
            from .torch import _row

            rows.append(_row(name, tensor))
        else:
            from .numpy import _row

            rows.append(_row(name, tensor))
    return rows


def save(
    tensors: Mapping[str, Any],
    directory: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
    stem: str = "model",
    engine: Engine | None = None,
) -> list[str]:
    """Saves tensors (numpy, torch, `Buffer`) as safetensors in `directory`, which is new or empty; returns the names of the files.

    shard_bytes: most tensor bytes in one file; None for a single file.
    The directory appears whole and durable, with the index and a file of checksums, or not at all.
    """
    used = engine or Engine.shared()
    strings = None if metadata is None else dict(metadata)
    return used.save(os.fspath(directory), _described(tensors), stem=stem, metadata=strings, shard_bytes=shard_bytes)


async def save_async(
    tensors: Mapping[str, Any],
    directory: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
    stem: str = "model",
    engine: Engine | None = None,
) -> list[str]:
    """As `save`, in a thread of the event loop's executor. Leave the tensors as they are meanwhile.

    A task that is cancelled ends at once. The save does not: it is whole and durable a little later, and `asyncio.run` waits for it.
    """
    import asyncio

    return await asyncio.to_thread(
        lambda: save(tensors, directory, metadata=metadata, shard_bytes=shard_bytes, stem=stem, engine=engine)
    )


def save_file(
    tensors: Mapping[str, Any],
    path: StrPath,
    metadata: Mapping[str, str] | None = None,
    *,
    engine: Engine | None = None,
) -> None:
    """Saves tensors as one `.safetensors` file: in place as a whole, durable, or not at all."""
    name = os.path.basename(os.fspath(path))
    stem, ending = os.path.splitext(name)
    if ending != ".safetensors" or not stem:
        raise ValueError(f"{name!r} does not end in .safetensors")
    used = engine or Engine.shared()
    used.save_file(os.fspath(path), _described(tensors), metadata=None if metadata is None else dict(metadata))
