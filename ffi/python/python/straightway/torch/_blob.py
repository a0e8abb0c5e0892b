"""One tensor as `torch.save` writes it: where its bytes are, without torch reading them, and the zip around them.

A blob is a zip file of stored entries: `archive/data.pkl` (a pickle that names type, shape and strides), some small ones, and
`archive/data/0`, the bytes. Source: `torch/serialization.py` and `caffe2/serialize/inline_container.h` of torch 2.15.
"""

from __future__ import annotations

import io
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


def _entries(head: memoryview) -> dict[str, tuple[int, int | None]]:
    """First byte and length of each entry whose header lies in the head. The length is None for one that ends past it."""
    found: dict[str, tuple[int, int | None]] = {}
    raw, at = bytes(head), 0
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


def locate(head: memoryview, length: int) -> Blob | None:
    """The tensor of a blob of `length` bytes that starts with `head`; None if it is not a plain dense one in this byte order."""
    entries = _entries(head)
    start, size = entries.get("data.pkl", (0, None))
    if size is None:
        return None
    order, count = entries.get("byteorder", (0, None))
    if count is not None and bytes(head[order : order + count]) != b"little":
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


class _Storage:
    """Stands for a storage in a pickle."""

    def __init__(self, kind: Any, count: int):
        self.kind, self.count = kind, count


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", obj.kind, "0", "cpu", obj.count)
        return None


class _Plain:
    """A tensor to be pickled, as torch pickles it."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]):
        self.dtype, self.shape = dtype, shape

    def __reduce__(self) -> Any:
        strides, dense = [], 1
        for dim in reversed(self.shape):
            strides.insert(0, dense)
            dense *= max(dim, 1)
        count = 1
        for dim in self.shape:
            count *= dim
        legacy = _LEGACY.get(self.dtype)
        if legacy is not None:
            storage = _Storage(legacy, count)
            return torch._utils._rebuild_tensor_v2, (storage, 0, self.shape, tuple(strides), False, OrderedDict())
        storage = _Storage(torch.storage.UntypedStorage, count * self.dtype.itemsize)
        arguments = (storage, 0, self.shape, tuple(strides), False, OrderedDict(), self.dtype)
        return torch._utils._rebuild_tensor_v3, arguments


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
_MAX32 = 0xFFFF_FFFF


class Zip:
    """The bytes around a tensor's: `head` before them, `tail` behind, for a blob that starts at byte `start` of its file and
    whose tensor starts on a multiple of `align` there."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], start: int, align: int):
        self.count = dtype.itemsize
        for dim in shape:
            self.count *= dim
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(_Plain(dtype, shape))
        self._rows: list[tuple[bytes, int, int, int]] = []
        self._head = bytearray()
        self._put(b"archive/data.pkl", buffer.getvalue())
        self._put(b"archive/byteorder", b"little")
        name = b"archive/data/0"
        # A 64-bit size needs 20 bytes of extra field; the padding needs at least its own header of 4.
        room = 30 + len(name) + (20 if self.count >= _MAX32 else 0) + 4
        pad = 4 + -(start + len(self._head) + room) % align
        self._data_header = (name, len(self._head), pad)
        self.head_len = len(self._head) + room - 4 + pad

    def _put(self, name: bytes, content: bytes) -> None:
        self._rows.append((name, len(self._head), len(content), zlib.crc32(content)))
        header = (LOCAL, 20, 0x800, 0, 0, 0, zlib.crc32(content), len(content), len(content), len(name), 0)
        self._head += struct.pack("<4s5H3I2H", *header) + name + content

    def finish(self, crc: int) -> tuple[bytes, bytes]:
        """Both parts, once the checksum of the bytes is known."""
        name, at, pad = self._data_header
        big = self.count >= _MAX32
        size = _MAX32 if big else self.count
        extra = struct.pack("<HHQQ", 1, 16, self.count, self.count) if big else b""
        extra += struct.pack("<2sH", b"FB", pad - 4) + b"Z" * (pad - 4)
        header = (LOCAL, 45 if big else 20, 0x800, 0, 0, 0, crc, size, size, len(name), len(extra))
        head = bytes(self._head) + struct.pack("<4s5H3I2H", *header) + name + extra
        end = len(head) + self.count
        rows = [*self._rows, (name, at, self.count, crc), (b"archive/version", end, 2, zlib.crc32(b"3\n"))]
        version = (LOCAL, 20, 0x800, 0, 0, 0, rows[-1][3], 2, 2, len(rows[-1][0]), 0)
        tail = struct.pack("<4s5H3I2H", *version) + rows[-1][0] + b"3\n"
        directory = end + len(tail)
        for row in rows:
            tail += _central(*row)
        length = end + len(tail) - directory
        if directory >= _MAX32:
            tail += struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, len(rows), len(rows), length, directory)
            tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, directory + length, 1)
        ends = (b"PK\x05\x06", 0, 0, len(rows), len(rows), length, min(directory, _MAX32), 0)
        return head, tail + struct.pack("<4s4H2IH", *ends)

    def tail_len(self) -> int:
        """Length of the second part: it does not depend on the checksum."""
        return len(self.finish(0)[1])


def _central(name: bytes, at: int, size: int, crc: int) -> bytes:
    extra = b""
    if size >= _MAX32:
        extra += struct.pack("<QQ", size, size)
    if at >= _MAX32:
        extra += struct.pack("<Q", at)
    if extra:
        extra = struct.pack("<HH", 1, len(extra)) + extra
    shown, place = min(size, _MAX32), min(at, _MAX32)
    fixed = (b"PK\x01\x02", 45, 45 if extra else 20, 0x800, 0, 0, 0, crc, shown, shown, len(name), len(extra), 0, 0, 0, 0, place)
    return struct.pack("<4s6H3I5H2I", *fixed) + name + extra
