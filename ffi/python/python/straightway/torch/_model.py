"""Modules whose tensors share memory: `save_model` and `load_model` of `safetensors.torch`.

A file has each piece of memory under one name. Which of several names it gets, and what the strings of the file say of the others, is
as in safetensors 0.8 (`bindings/python/py_src/safetensors/torch.py`), so that each package reads what the other saved.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Union

import torch

from . import load_file, load_together, save_file


def _end(tensor: torch.Tensor) -> int:
    """The address behind the last element."""
    if tensor.numel() == 0:
        return tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _shared(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of tensors by the memory that they share; a name alone shares with none."""
    storages: dict[Any, list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            # save_file says what is wrong with it.
            continue
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.nbytes() and storage.data_ptr():
            storages[tensor.device, storage.data_ptr(), storage.nbytes()].append((tensor.data_ptr(), _end(tensor), name))
    groups: list[list[str]] = []
    for spans in storages.values():
        last_stop = None
        for start, stop, name in sorted(spans):
            if last_stop is None or start >= last_stop:
                groups.append([name])
            else:
                groups[-1].append(name)
            last_stop = stop
    return groups


def _is_complete(tensor: torch.Tensor) -> bool:
    """Whether it is all of its memory."""
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.numel() * tensor.element_size() == storage.nbytes()


def _duplicates(state: Mapping[str, torch.Tensor], preferred: Collection[str] = ()) -> dict[str, list[str]]:
    """Names to leave out, by the name that stays: the first that is all of its memory, of those that are preferred if there are any.

    Raises `RuntimeError` where no name is all of the memory.
    """
    found = {}
    for names in _shared(state):
        complete = sorted(name for name in names if _is_complete(state[name]))
        if not complete:
            raise RuntimeError(
                f"None of {sorted(names)} covers all of the memory it lies in, so that a file would have more or less than the "
                "module; clone the tensors first"
            )
        kept = next((name for name in complete if name in preferred), complete[0])
        if len(names) > 1:
            found[kept] = sorted(name for name in names if name != kept)
    return found


def save_model(
    model: torch.nn.Module,
    filename: Union[str, os.PathLike[str]],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
) -> None:
    """As `safetensors.torch.save_model`: tensors that share memory are saved once, and the strings of the file tell under which name.

    Raises `RuntimeError` where no tensor is all of the memory that several share, and `ValueError` for one that is not dense with
    `force_contiguous=False`.
    """
    state = dict(model.state_dict())
    strings = None if metadata is None else dict(metadata)
    for kept, others in _duplicates(state).items():
        for name in others:
            strings = strings or {}
            # The caller's own strings stay.
            strings.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_file(state, filename, strings)
    except ValueError as error:
        if force_contiguous:
            raise
        raise ValueError(f"{error}; or use save_model(..., force_contiguous=True)") from error


def load_model(
    model: torch.nn.Module,
    filename: Union[str, os.PathLike[str]],
    strict: bool = True,
    device: Union[str, int] = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[set[str], list[str]]:
    """As `safetensors.torch.load_model`: fills the tensors of `model`, and returns names that were missing and names that it has not.

    Raises `RuntimeError` for such names if `strict`, and for tensors of another shape.
    """
    return _fill(model, load_file(filename, device, backend=backend), strict)


def load_model_together(
    model: torch.nn.Module,
    filename: Union[str, os.PathLike[str]],
    strict: bool = True,
    device: Union[str, int] = "cpu",
    **options: Any,
) -> tuple[set[str], list[str]]:
    """As `load_model`, for ranks that call it together: `load_together` loads, and `options` are its own."""
    return _fill(model, load_together(filename, device, **options), strict)


def _fill(model: torch.nn.Module, loaded: Mapping[str, torch.Tensor], strict: bool) -> tuple[set[str], list[str]]:
    duplicates = _duplicates(model.state_dict(), loaded.keys())
    result = model.load_state_dict(loaded, strict=False)
    missing, unexpected = set(result.missing_keys), list(result.unexpected_keys)
    for name in (name for others in duplicates.values() for name in others):
        if name in missing:
            missing.remove(name)
        else:
            # It is in the file beside the name that stays: whichever was read last has won.
            unexpected.append(name)
    if strict and (missing or unexpected):
        told = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, names in [("Missing", missing), ("Unexpected", unexpected)]:
            if names:
                told.append(f"    {what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in sorted(names)))
        raise RuntimeError("\n".join(told))
    return missing, unexpected
