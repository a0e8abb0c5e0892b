"""Checkpoints that are no DCP directories, as `torch.distributed.checkpoint` sees one: safetensors, and files of `torch.save`.

Their heads are read and checked by the engine; what comes of them is a `Metadata` whose places are bare ranges of elements.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from .. import _errors
from .._native import Checkpoint, Engine
from . import _DTYPES
from ._blob import Blob

SUFFIXES = (".safetensors", ".safetensors.index.json")


def is_raw(path: str) -> bool:
    """Whether it is such a checkpoint: no directory (what it is, if anything, is told by opening it), or one that has safetensors and
    is none of DCP."""
    if not os.path.isdir(path):
        return True
    names = os.listdir(path)
    return ".metadata" not in names and any(name.endswith(SUFFIXES) for name in names)


def read(engine: Engine, path: str) -> tuple[Metadata, dict[tuple[str, int], Blob]]:
    """Metadata of all tensors, and what lies at each place. Raises `BadFormat`, `Unsupported` for elements that torch has not, and what
    opening reports."""
    opened = engine.open_checkpoint(path)
    described: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    blobs: dict[tuple[str, int], Blob] = {}
    for name, element, shape, _ in opened.tensors():
        dtype = _DTYPES.get(element)
        if dtype is None:
            text = f"read {path} failed: {name} has {element}, which torch {torch.__version__} has not; load it by straightway.load"
            raise _errors.new("unsupported", text, path)
        chunks = []
        for file, offset, length, starts, sizes in _chunks(opened, name, shape):
            start, size = (torch.Size(_of_torch(element, dims)) for dims in (starts, sizes))
            chunks.append(ChunkStorageMetadata(start, size))
            places[MetadataIndex(name, start)] = _StorageInfo(file, offset, length)
            if length:
                blobs[file, offset] = Blob(dtype, tuple(size), 0)
        whole = torch.Size(_of_torch(element, shape))
        described[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), whole, chunks)
    return Metadata(state_dict_metadata=described, storage_data=places, storage_meta=StorageMeta()), blobs


def _chunks(opened: Checkpoint, name: str, shape: list[int]) -> list[tuple[str, int, int, list[int], list[int]]]:
    """Those of a tensor; one without bytes for a tensor without elements, which nobody reads."""
    return opened.places(name) or [("", 0, 0, [0] * len(shape), shape)]


def _of_torch(element: str, dims: list[int]) -> list[int]:
    """Dimensions as torch counts them: it has two elements of four bits as one."""
    return [*dims[:-1], dims[-1] // 2] if element == "F4" and dims else dims
