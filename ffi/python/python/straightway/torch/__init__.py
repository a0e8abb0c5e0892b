"""torch tensors from and to checkpoints.

`load`, `load_file`, `load_model`, `save`, `save_file`, `save_model` and `safe_open` take the arguments of `safetensors.torch` and give its
results. `load_together`, `load_model_together` and `load_state_dict_together` are for the ranks of a job.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

import torch

from .. import _bytes
from .. import load_file as _load_file
from .. import save_file as _save_file
from .._native import Buffer, Engine
from .._open import safe_open

if TYPE_CHECKING:
    import torch.distributed as dist

    from ._together import Together
    from .checkpoint import StorageReader

__all__ = [
    "DataLoader",
    "IterableDataset",
    "from_buffer",
    "load",
    "load_file",
    "load_model",
    "load_model_together",
    "load_state_dict_together",
    "load_together",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
for _attribute, _name in {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}.items():
    if hasattr(torch, _attribute):
        _NAMES[getattr(torch, _attribute)] = _name
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def from_buffer(buffer: Buffer) -> torch.Tensor:
    """A tensor that shares the buffer's memory, on its device. Raises `TypeError` for what torch cannot have."""
    dtype = _DTYPES.get(buffer.dtype)
    if dtype is None:
        raise TypeError(f"torch {torch.__version__} has no {buffer.dtype}")
    # As bytes first: not every torch takes every type by DLPack, and all take bytes.
    shape = list(buffer.shape)
    if buffer.dtype == "F4":
        shape = [*shape[:-1], shape[-1] // 2]
    if buffer.nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_dlpack(buffer.view("U8")).view(dtype).view(shape)


def _bytes_of(tensor: torch.Tensor) -> Any:
    """The bytes of a dense tensor, shared; on its device. What its stream has yet to do is waited for."""
    if tensor.numel() == 0:
        return b""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    # A lazily conjugated or negated view has other bytes than its values.
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)


def _row(name: str, tensor: torch.Tensor) -> tuple[str, str, list[int], Any]:
    """What `Engine.save` takes."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: a {tensor.layout} tensor has no safetensors form; make it dense first")
    if tensor.dtype not in _NAMES:
        raise TypeError(f"{name}: {tensor.dtype} is no element type of safetensors")
    shape = list(tensor.shape)
    if _NAMES[tensor.dtype] == "F4":
        shape = [*shape[:-1], shape[-1] * 2]
    return name, _NAMES[tensor.dtype], shape, _bytes_of(tensor.contiguous())


def load_file(
    filename: Union[str, os.PathLike[str]],
    device: Union[str, int, torch.device] = "cpu",
    *,
    backend: str = "mmap",
) -> dict[str, torch.Tensor]:
    """As `safetensors.torch.load_file`. The tensors of a file share one region; `backend` is accepted and not used."""
    del backend
    return dict(_load_file(filename, device, framework="torch"))


def load_together(
    filename: Union[str, os.PathLike[str]],
    device: Union[str, int, torch.device] = "cpu",
    *,
    process_group: dist.ProcessGroup | None = None,
    timeout: float = 60.0,
    tensors: Iterable[str] | None = None,
    policy: str = "any",
    verify: str = "auto",
    engine: Engine | None = None,
) -> Together:
    """Tensors of a checkpoint of any format that `straightway.load` takes, for the ranks of `process_group` (None: all ranks), which call
    it together. What several want is read by one of them, and each has it as if it had read it, or all raise.

    tensors: names, which may differ among the ranks; None for all.
    timeout, policy, verify: as of `straightway.torch.checkpoint.StorageReader`, which does this.

    The result is a dict, whose `reader` tells what this rank read and what it was given; heads aside, which each rank reads. Without
    torch.distributed one process reads all. What a rank fails by it raises, and the others `Cancelled` with its words.
    """
    from . import _together

    options = {"process_group": process_group, "timeout": timeout, "policy": policy, "verify": verify}
    return _together.load(filename, device, tensors, engine, **options)


def load_state_dict_together(
    state_dict: dict[str, Any],
    filename: Union[str, os.PathLike[str]],
    *,
    strict: bool = True,
    process_group: dist.ProcessGroup | None = None,
    timeout: float = 60.0,
    policy: str = "any",
    verify: str = "auto",
    engine: Engine | None = None,
) -> StorageReader:
    """Loads into the tensors of `state_dict`, as `torch.distributed.checkpoint.load` does with a `StorageReader` that shares, at less
    cost: for the ranks of `process_group`, which call it together. DTensors, `ShardedTensor`s and plain tensors get what they have of
    the checkpoint's, however many ranks wrote it; dicts may be nested; a `Stateful` value is asked for its state and given it back.
    `filename` is a DCP directory, or what `load_together` takes.

    strict: whether a name that the checkpoint has not is an error; else it stays as it is.
    timeout, policy, verify: as of `straightway.torch.checkpoint.StorageReader`, which is what is returned.

    No tensor is touched before all ranks have planned. What a rank fails by it raises, and the others `Cancelled` with its words.
    """
    from . import _together

    options = {"process_group": process_group, "timeout": timeout, "policy": policy, "verify": verify}
    return _together.load_state_dict(state_dict, filename, strict, engine, **options)


def load(data: bytes) -> dict[str, torch.Tensor]:
    """As `safetensors.torch.load`: the tensors of a file that is in memory, on the CPU. Raises `BadFormat`."""
    return _bytes.load(data, "torch")


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """As `safetensors.torch.save`: a file as bytes. Raises what `save_file` does."""
    _check(tensors)
    rows = [_row(name, tensor) for name, tensor in tensors.items()]
    head, begins = _bytes.layout([(name, dtype, shape, len(content)) for name, dtype, shape, content in rows], metadata)
    whole = bytearray(len(head) + sum(len(content) for *_, content in rows))
    whole[: len(head)] = head
    memory = torch.frombuffer(whole, dtype=torch.uint8)
    for name, _, _, content in rows:
        if len(content):
            memory[begins[name] : begins[name] + len(content)] = content
    return bytes(whole)


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: Union[str, os.PathLike[str]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `safetensors.torch.save_file`; the file appears as a whole and is durable. Its name ends in `.safetensors`.

    Raises `ValueError` for a tensor that is not dense, and `RuntimeError` for tensors that share memory.
    """
    _check(tensors)
    _save_file(tensors, filename, metadata)


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises as the original does for what a file cannot say."""
    spans = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"Key `{name}` is invalid, expected torch.Tensor but received {type(tensor)}")
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise ValueError(f"You are trying to save a non contiguous tensor: `{name}`; call .contiguous() first")
        if tensor.numel():
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + tensor.numel() * tensor.element_size(), name))
    spans.sort()
    for (device, _, stop, name), (other_device, start, _, other) in zip(spans, spans[1:]):
        if device == other_device and start < stop:
            raise RuntimeError(
                f"Some tensors share memory, which a file cannot say: {name}, {other}; clone one of them, or use save_model"
            )


from ._loader import DataLoader, IterableDataset  # noqa: E402  (it uses from_buffer)
from ._model import load_model, load_model_together, save_model  # noqa: E402  (it uses load_file and save_file)
