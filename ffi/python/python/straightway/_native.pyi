"""The compiled half. What is public is in `straightway`."""

from collections.abc import Awaitable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Protocol, final

from typing_extensions import Buffer as SupportsBuffer
from typing_extensions import Self

from ._reports import Doctor, LoadReport, Path, Plan

__version__: str
_StrPath = str | PathLike[str]

class _SupportsDlpack(Protocol):
    def __dlpack__(self) -> Any: ...

_Target = Buffer | SupportsBuffer | _SupportsDlpack

@final
class Buffer:
    """Memory of the engine, seen as a dense array in row-major order.

    `numpy.asarray(buffer)`, `torch.from_dlpack(buffer)` and `memoryview(buffer)` share the memory; it stays as long as one
    of them lives. An operation that reads into a buffer writes under them, as `readinto` of a file would.
    """

    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def view(self, dtype: str = "U8", shape: Sequence[int] | None = None, offset: int = 0) -> Buffer: ...
    def tobytes(self) -> bytes: ...
    def __len__(self) -> int: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class Completions:
    def __init__(self) -> None: ...
    def fileno(self) -> int: ...
    def drain(self) -> list[int]: ...

@final
class Operation:
    """An operation that was started. Dropping it gives up the answer."""

    def wait(self) -> Any: ...
    def poll(self, completions: Completions, token: int) -> tuple[Any] | None: ...
    def cancel(self) -> None: ...

@final
class Object:
    """Something with bytes at offsets: a file, a block device, a namespace, a stripe set."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def cached_bytes(self) -> int | None: ...
    def read(
        self,
        offset: int = 0,
        length: int | None = None,
        *,
        into: str = "host",
        policy: str = "any",
        deadline: float | None = None,
    ) -> Buffer: ...
    def read_into(
        self, target: _Target, offset: int = 0, *, policy: str = "any", deadline: float | None = None
    ) -> Path | None: ...
    def start_read(
        self,
        offset: int = 0,
        length: int | None = None,
        *,
        into: str = "host",
        policy: str = "any",
        deadline: float | None = None,
    ) -> Operation: ...
    def start_read_into(
        self, target: _Target, offset: int = 0, *, policy: str = "any", deadline: float | None = None
    ) -> Operation: ...
    def read_async(
        self,
        offset: int = 0,
        length: int | None = None,
        *,
        into: str = "host",
        policy: str = "any",
        deadline: float | None = None,
    ) -> Awaitable[Buffer]: ...
    def read_into_async(
        self, target: _Target, offset: int = 0, *, policy: str = "any", deadline: float | None = None
    ) -> Awaitable[Path | None]: ...
    def plan(self, into: str = "host", policy: str = "any") -> Plan: ...
    def check_unchanged(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool: ...

@final
class NewObject:
    """An object in the making: in place as a whole after `commit`, and gone without it."""

    def write(
        self, parts: Sequence[tuple[int, _Target]], *, policy: str = "any", deadline: float | None = None
    ) -> list[Path]: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool: ...

@final
class Checkpoint:
    """A checkpoint whose headers were read and checked."""

    def tensors(self) -> list[tuple[str, str, list[int], int]]: ...
    def metadata(self, file: int = 0) -> dict[str, str]: ...
    def read(
        self,
        wants: Sequence[tuple[str, Sequence[tuple[int, int]] | None]],
        *,
        into: str = "host",
        policy: str = "any",
    ) -> tuple[list[tuple[str, Buffer]], LoadReport]: ...

@final
class Engine:
    """Moves bytes between objects and memory. Share one; `with` closes it at the end."""

    def __init__(self, **options: Any) -> None: ...
    @staticmethod
    def shared() -> Engine: ...
    def open(self, uri: _StrPath) -> Object: ...
    def create(self, uri: _StrPath, size: int) -> NewObject: ...
    def allocate(self, nbytes: int, into: str = "host", *, phase: int = 0) -> Buffer: ...
    def read_many(
        self, parts: Sequence[tuple[Object, int, _Target]], *, policy: str = "any", deadline: float | None = None
    ) -> list[Path]: ...
    def to_host(self, buffer: Buffer) -> Buffer: ...
    def open_checkpoint(self, uri: _StrPath) -> Checkpoint: ...
    def load(
        self,
        uri: _StrPath,
        *,
        into: str = "host",
        tensors: str | Sequence[str] | None = None,
        policy: str = "any",
    ) -> tuple[list[tuple[str, Buffer]], LoadReport]: ...
    def save(
        self,
        directory: _StrPath,
        tensors: Sequence[tuple[str, str, Sequence[int], _Target]],
        *,
        stem: str = "model",
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int | None = None,
    ) -> list[str]: ...
    def crc32(self, source: _Target) -> int: ...
    def save_file(
        self,
        path: _StrPath,
        tensors: Sequence[tuple[str, str, Sequence[int], _Target]],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None: ...
    def doctor(self) -> Doctor: ...
    def inspect(self) -> str: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool: ...
