"""`safe_open`: one file, its tensors and parts of them read when they are asked for."""

from __future__ import annotations

import os
from typing import Any, Union

from ._native import Buffer, Engine



class safe_open:
    """As `safetensors.safe_open`: same arguments, same results, by the engine.

    `backend` is accepted and not used: the engine plans its own route, and `path` of a buffer tells which.
    """

    def __init__(
        self,
        filename: Union[str, os.PathLike[str]],
        framework: str,
        device: Any = "cpu",
        *,
        backend: str = "mmap",
        engine: Engine | None = None,
    ):
        from . import _converter, _destination

        del backend
        self._convert = _converter(framework)
        self._into = _destination(device)
        self._checkpoint = (engine or Engine.shared()).open_checkpoint(filename)
        self._rows = {row[0]: row for row in self._checkpoint.tensors()}
        self._objects = {file: self._checkpoint.object(file) for file in {row[4] for row in self._rows.values()}}
        self._load = lambda: (engine or Engine.shared()).load(filename, into=self._into)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *exception: object) -> None:
        self._objects.clear()

    def __repr__(self) -> str:
        return f"<straightway.safe_open {len(self._rows)} tensors into {self._into}>"

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._rows)

    def offset_keys(self) -> list[str]:
        """Names in the order of the file."""
        return list(self._rows)

    def metadata(self) -> dict[str, str] | None:
        """Free-form strings of the header, None if there are none."""
        return self._checkpoint.metadata() or None

    def get_tensor(self, name: str) -> Any:
        """One tensor."""
        return self._convert(self._part(name, 0, None, None))

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor, in one load."""
        return {name: self._convert(buffer) for name, buffer in self._load()[0]}

    def get_slice(self, name: str) -> _Slice:
        """A tensor of which an index reads only what it needs."""
        self._row(name)
        return _Slice(self, name)

    def _row(self, name: str) -> tuple[str, str, list[int], int, int, int]:
        if name not in self._rows:
            raise KeyError(f"File does not contain tensor {name}")
        return self._rows[name]

    def _part(self, name: str, at: int, nbytes: int | None, shape: list[int] | None) -> Buffer:
        _, dtype, whole, size, file, offset = self._row(name)
        if file not in self._objects:
            raise ValueError("the file was closed")
        size = size if nbytes is None else nbytes
        buffer = self._objects[file].read(offset + at, size, into=self._into)
        return buffer.view(dtype, whole if shape is None else shape)


class _Slice:
    """A tensor in the file. Index it as an array: leading ranges and large inner runs are read alone."""

    def __init__(self, file: safe_open, name: str):
        self._file = file
        self._name = name

    def get_shape(self) -> list[int]:
        """Dimensions."""
        return list(self._file._row(self._name)[2])

    def get_dtype(self) -> str:
        """Element type by its safetensors name."""
        return self._file._row(self._name)[1]

    def __getitem__(self, index: Any) -> Any:
        _, _, shape, size, _, _ = self._file._row(self._name)
        items = _expand(index, len(shape))
        if items is None or not shape or size == 0:
            return self._file.get_tensor(self._name)[index]
        first = items[0]
        if isinstance(first, int):
            position = first + shape[0] if first < 0 else first
            if not 0 <= position < shape[0]:
                raise IndexError(f"index {first} is out of bounds for dimension 0 with size {shape[0]}")
            start, stop = position, position + 1
        else:
            start, stop, step = first.indices(shape[0])
            if step != 1:
                return self._file.get_tensor(self._name)[index]
            stop = max(stop, start)
        row = size // shape[0]
        if start == stop:
            part = self._file._part(self._name, 0, 0, [0, *shape[1:]])
        else:
            part = self._file._part(self._name, start * row, (stop - start) * row, [stop - start, *shape[1:]])
        array = self._file._convert(part)
        rest = tuple(items[1:])
        return array[(0, *rest)] if isinstance(first, int) else array[(slice(None), *rest)]


def _expand(index: Any, rank: int) -> list[Any] | None:
    """The index as one int or slice for each leading dimension, or None where only the framework knows what it means."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in items if item is Ellipsis]:
        at = next(place for place, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    simple = all(isinstance(item, (int, slice)) and not isinstance(item, bool) for item in items)
    return items if simple and 0 < len(items) <= rank else None
