"""numpy arrays from and to checkpoints: the functions of `safetensors.numpy`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from . import _bytes
from . import load_file as _load_file
from . import save_file as _save_file
from ._native import Buffer
from ._open import safe_open

__all__ = ["from_buffer", "load", "load_file", "safe_open", "save", "save_file"]

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    # Of the package ml_dtypes.
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
_ML_DTYPES = {name: text for text, name in _NAMES.items() if name == "BF16" or name.startswith("F8")}


def from_buffer(buffer: Buffer) -> np.ndarray[Any, Any]:
    """A writable array that shares the buffer's memory.

    BF16 and F8 need the package ml_dtypes. Raises `TypeError` for what numpy cannot have.
    """
    if buffer.dtype not in _ML_DTYPES:
        try:
            return np.asarray(memoryview(buffer))
        except BufferError as cause:
            raise TypeError(str(cause)) from cause
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"numpy has no {buffer.dtype}; install ml_dtypes, or load with torch") from None
    raw = np.asarray(memoryview(buffer.view("U8")))
    return raw.view(getattr(ml_dtypes, _ML_DTYPES[buffer.dtype])).reshape(buffer.shape)


def _row(name: str, tensor: Any) -> tuple[str, str, list[int], Any]:
    """What `Engine.save` takes."""
    array = np.ascontiguousarray(tensor)
    shape = list(np.shape(tensor))
    dtype = _NAMES.get(array.dtype.name)
    if dtype is None:
        raise TypeError(f"{name}: numpy {array.dtype} is no element type of safetensors")
    if array.dtype.byteorder == ">":
        array = array.byteswap()
    return name, dtype, shape, array.reshape(-1).view(np.uint8) if array.size else b""


def load(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """As `safetensors.numpy.load`: the arrays of a file that is in memory. Raises `BadFormat`."""
    return _bytes.load(data, "numpy")


def load_file(filename: Union[str, os.PathLike[str]], *, backend: str = "mmap") -> dict[str, np.ndarray[Any, Any]]:
    """As `safetensors.numpy.load_file`; the arrays of a file share one region of memory. `backend` is accepted and not used."""
    del backend
    return dict(_load_file(filename, framework="numpy"))


def save(tensor_dict: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """As `safetensors.numpy.save`: a file as bytes."""
    rows = [_row(name, tensor) for name, tensor in tensor_dict.items()]
    parts = {name: memoryview(content) for name, _, _, content in rows}
    head, begins = _bytes.layout([(name, dtype, shape, parts[name].nbytes) for name, dtype, shape, _ in rows], metadata)
    return b"".join([head, *(parts[name] for name in begins)])


def save_file(
    tensor_dict: Mapping[str, Any],
    filename: Union[str, os.PathLike[str]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `safetensors.numpy.save_file`; the file appears as a whole and is durable."""
    _save_file(tensor_dict, filename, metadata)
