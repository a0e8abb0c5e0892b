"""One tensor as `torch.save` writes it: where its bytes are, without torch reading them.

A blob is a zip file of stored entries: `archive/data.pkl` (a pickle that names type, shape and strides), some small ones, and
`archive/data/0`, the bytes. Source: `torch/serialization.py` and `caffe2/serialize/inline_container.h` of torch 2.15.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

LOCAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
# Enough for the pickle of a plain tensor and all entries before its bytes, with their padding: they take under 1 KiB.
HEAD_BYTES = 2048
# Heads that are remembered: a checkpoint has few shapes and types.
HEADS_MAX = 32


@dataclass(frozen=True)
class Blob:
    """A dense tensor in a blob."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    # First byte, from the start of the blob.
    at: int


class _Tensor:
    """What a pickle of a plain tensor comes to."""

    def __init__(self, storage: tuple[torch.dtype, str], offset: int, size: Any, stride: Any, dtype: torch.dtype | None):
        self.storage_dtype, self.key = storage
        self.offset, self.size, self.stride, self.dtype = offset, tuple(size), tuple(stride), dtype or self.storage_dtype


def _rebuild_v2(storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride, None)


def _rebuild_v3(storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride, dtype)


_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_rest: tensor,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.storage", "UntypedStorage"): torch.uint8,
}


class _Unpickler(pickle.Unpickler):
    """Knows plain tensors and nothing else: a pickle from outside calls only what stands here."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a plain tensor")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        return dtype, key


def _entries(raw: bytes) -> dict[str, tuple[int, int | None]]:
    """First byte and length of each entry whose header lies in the head. The length is None for one that ends past it."""
    found: dict[str, tuple[int, int | None]] = {}
    at = 0
    while raw[at : at + 4] == LOCAL and at + 30 <= len(raw):
        flags, method = struct.unpack_from("<HH", raw, at + 6)
        _crc, _packed, size, name_len, extra_len = struct.unpack_from("<IIIHH", raw, at + 14)
        start = at + 30 + name_len + extra_len
        name = raw[at + 30 : at + 30 + name_len].decode("utf-8", "replace").partition("/")[2]
        if method != 0 or at + 30 + name_len > len(raw):
            break
        if not flags & 8:
            found[name] = (start, size)
            at = start + size
            continue
        # The length stands behind the bytes, where a descriptor says that it is just that far.
        if start > len(raw):
            found[name] = (start, None)
            break
        end = raw.find(DESCRIPTOR, start)
        while end >= 0 and (end + 16 > len(raw) or struct.unpack_from("<I", raw, end + 12)[0] != end - start):
            end = raw.find(DESCRIPTOR, end + 1)
        if end < 0 or zlib.crc32(raw[start:end]) != struct.unpack_from("<I", raw, end + 4)[0]:
            found[name] = (start, None)
            break
        found[name] = (start, end - start)
        at = end + 16
    return found


class Locator:
    """Finds the tensors of the blobs of one checkpoint. Most have the same head as another one, and then it is not parsed again."""

    def __init__(self) -> None:
        # What lies before the bytes of a tensor, and the tensor: only of those whose bytes go on behind the head.
        self._known: list[tuple[bytes, Blob]] = []

    def locate(self, head: memoryview, length: int) -> Blob | None:
        """The tensor of a blob of `length` bytes that starts with `head`; None if it is not a plain dense one in this byte order."""
        raw = bytes(head)
        for before, blob in self._known:
            if raw.startswith(before) and _goes_on(raw, blob, length):
                return blob
        found = _locate(raw, length)
        if found is not None and len(self._known) < HEADS_MAX and _goes_on(raw, found, length):
            self._known.append((raw[: found.at], found))
        return found


def _goes_on(raw: bytes, blob: Blob, length: int) -> bool:
    """Whether all of a head behind the place of the tensor is bytes of it, so that nothing there says otherwise."""
    end = blob.at + math.prod(blob.shape) * blob.dtype.itemsize
    return len(raw) <= end <= length and raw.find(DESCRIPTOR, blob.at) < 0


def _locate(head: bytes, length: int) -> Blob | None:
    """As `Locator.locate`."""
    entries = _entries(head)
    start, size = entries.get("data.pkl", (0, None))
    if size is None:
        return None
    order, count = entries.get("byteorder", (0, None))
    if count is not None and head[order : order + count] != b"little":
        return None
    try:
        tensor = _Unpickler(io.BytesIO(head[start : start + size])).load()
    except Exception:
        return None
    if not isinstance(tensor, _Tensor) or f"data/{tensor.key}" not in entries:
        return None
    numbers = (tensor.offset, *tensor.size, *tensor.stride)
    if len(tensor.size) != len(tensor.stride) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        return None
    dense, item = 1, tensor.dtype.itemsize
    for dim, stride in zip(reversed(tensor.size), reversed(tensor.stride)):
        if dim != 1 and stride != dense:
            return None
        dense *= dim
    start, stored = entries[f"data/{tensor.key}"]
    at = start + tensor.offset * item
    if at + dense * item > (length if stored is None else start + stored):
        return None
    return Blob(tensor.dtype, tensor.size, at)


_LEGACY = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
    torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage,
}
_STORAGES = {kind.__name__: dtype for dtype, kind in _LEGACY.items()}
