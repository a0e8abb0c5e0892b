"""`safe_open`: a checkpoint, its tensors and parts of them read when they are asked for."""

from __future__ import annotations

import os
from typing import Any, Union

from ._native import Checkpoint, Engine



class safe_open:
    """As `safetensors.safe_open`: same arguments, same results, by the engine; it opens every format that `load` does.

    `backend` is accepted and not used: the engine plans its own route.
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
        self._checkpoint: Checkpoint | None = (engine or Engine.shared()).open_checkpoint(filename)
        self._rows = {row[0]: row for row in self._checkpoint.tensors()}

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpoint = None

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
        return self._open().metadata() or None

    def get_tensor(self, name: str) -> Any:
        """One tensor."""
        return self._part(name, None)

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor, in one load."""
        buffers, _ = self._open().read([(name, None) for name in self._rows], into=self._into)
        return {name: self._convert(buffer) for name, buffer in buffers}

    def get_slice(self, name: str) -> _Slice:
        """A tensor of which an index reads only what it needs."""
        self._row(name)
        return _Slice(self, name)

    def _open(self) -> Checkpoint:
        if self._checkpoint is None:
            raise ValueError("the file was closed")
        return self._checkpoint

    def _row(self, name: str) -> tuple[str, str, list[int], int]:
        if name not in self._rows:
            raise KeyError(f"File does not contain tensor {name}")
        return self._rows[name]

    def _part(self, name: str, ranges: list[tuple[int, int]] | None) -> Any:
        self._row(name)
        [(_, buffer)], _ = self._open().read([(name, ranges)], into=self._into)
        return self._convert(buffer)


class _Slice:
    """A tensor in the file. Index it as an array: an index of numbers and ranges reads what it needs and no more."""

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
        shape = self.get_shape()
        items = _expand(index, len(shape))
        if items is None:
            return self._file.get_tensor(self._name)[index]
        ranges, rest = [], []
        for dim, (item, length) in enumerate(zip(items, shape)):
            if isinstance(item, int):
                position = item + length if item < 0 else item
                if not 0 <= position < length:
                    raise IndexError(f"index {item} is out of bounds for dimension {dim} with size {length}")
                ranges.append((position, position + 1))
                rest.append(0)
                continue
            start, stop, step = item.indices(length)
            if step != 1:
                return self._file.get_tensor(self._name)[index]
            ranges.append((start, max(start, stop)))
            rest.append(slice(None))
        return self._file._part(self._name, ranges)[tuple(rest)]


def _expand(index: Any, rank: int) -> list[Any] | None:
    """The index as one int or slice for each dimension, or None where only the framework knows what it means."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in items if item is Ellipsis]:
        at = next(place for place, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    simple = all(isinstance(item, (int, slice)) and not isinstance(item, bool) for item in items)
    return items + [slice(None)] * (rank - len(items)) if simple and len(items) <= rank else None
