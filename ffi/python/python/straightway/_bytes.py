"""safetensors in memory: the `save` and `load` of `straightway.numpy` and `straightway.torch`, which give and take bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

# safetensors 0.8 sorts tensors so that each is aligned: types in this order, then names. Ours are the same bytes then.
_ORDER = (
    "U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 I8 U8 F6_E3M2 F6_E2M3 F4 BOOL"
).split()
# The first word of a file is the length of the header, which is filled up with spaces to whole words.
_WORD = 8

#: Name, type, shape, length in bytes.
Described = tuple[str, str, list[int], int]


def layout(rows: Iterable[Described], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """What comes before the tensors, and where in the whole each of them begins. Raises `ValueError` for strings that are not text."""
    header: dict[str, Any] = {}
    if metadata is not None:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"metadata is text to text, not {key!r}: {value!r}")
        header["__metadata__"] = dict(metadata)
    end, begins = 0, {}
    for name, dtype, shape, nbytes in sorted(rows, key=lambda row: (_ORDER.index(row[1]), row[0])):
        if name == "__metadata__":
            raise ValueError("no tensor can be called __metadata__: the format keeps that name for the strings")
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        begins[name], end = end, end + nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _WORD)
    head = len(text).to_bytes(_WORD, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


def load(data: Any, framework: str) -> dict[str, Any]:
    """Tensors of a file that is in memory. It is read as one on disk is, checks and errors included, from a copy of it that has
    no name. Raises `BadFormat`, and `TypeError` for what has no bytes."""
    from . import load as _load

    view = memoryview(data).cast("B")
    descriptor = os.memfd_create("straightway-load", os.MFD_CLOEXEC)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
        return dict(_load(f"/proc/self/fd/{descriptor}", framework=framework))
    finally:
        os.close(descriptor)
