"""Plug-ins for DLIO, the benchmark under MLPerf Storage: named by class in a workload, without a change to DLIO.

::

    reader:
      data_loader: pytorch
      data_loader_classname: straightway.dlio.StraightwayDataLoader
      data_loader_sampler: index
    checkpoint:
      checkpoint_mechanism_classname: straightway.dlio.StraightwayCheckpointing

The loader reads the formats `npz`, `npy`, `tfrecord`, `jpeg` and `png`: whole samples, bytes as they are stored; all but TFRecord with one
sample a file. A step is handed over when all bytes of its batch are in memory of this process, as MLPerf's rules ask. DLIO's own
loaders drop what they read and hand over one array again and again; this one hands over what it read.

`reader_classname: straightway.dlio.StraightwayReader` leaves the loader, its workers and its order to DLIO, and reads the files of
`npz`, `npy`, `jpeg` and `png` in the place of DLIO's readers. A workload names the one or the other: with our loader no reader is asked.

For the loader: where `DATA_FOLDER/train.index.arrow` is an index of the files of `DATA_FOLDER/train` (`valid` likewise), samples are
looked up there; without one every rank scans the files before the first epoch, which reads through all of a TFRecord file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from dlio_benchmark.checkpointing.pytorch_checkpointing import PyTorchCheckpointing
from dlio_benchmark.common.enumerations import DataLoaderType, DatasetType, FormatType, Shuffle
from dlio_benchmark.data_loader.base_data_loader import BaseDataLoader
from dlio_benchmark.reader.reader_handler import FormatReader

from . import Dataset, Loader
from . import open as _open
from .torch import load_file, save_file

__all__ = ["StraightwayCheckpointing", "StraightwayDataLoader", "StraightwayReader"]

#: What DLIO calls a format, what it is called here, and the array of it that is the sample. An npy file of DLIO is one sample, not
#: one for each row.
_FORMATS = {
    FormatType.NPZ: ("npz", "x"),
    FormatType.NPY: ("raw", None),
    FormatType.TFRECORD: ("tfrecord", None),
    FormatType.JPEG: ("raw", None),
    FormatType.PNG: ("raw", None),
}


class StraightwayDataLoader(BaseDataLoader):
    """Reads `prefetch_size` batches ahead, at least 2, by threads; `read_threads` changes nothing.

    DLIO's torch loader has as many for each of its processes. Threads need fewer, and what is read further ahead when all ranks
    begin makes the second step of some of them wait.
    """

    def __init__(self, format_type: Any, dataset_type: Any, epoch_number: int) -> None:
        super().__init__(format_type, dataset_type, epoch_number, DataLoaderType.PYTORCH)
        self._loader: Loader | None = None

    def read(self) -> None:
        """Begins to read the samples of this rank."""
        args = self._args
        if self.format_type not in _FORMATS:
            names = ", ".join(str(format.value) for format in _FORMATS)
            raise ValueError(f"straightway.dlio reads {names}; {self.format_type} has no reader here")
        if args.num_samples_per_file != 1 and self.format_type is not FormatType.TFRECORD:
            raise ValueError(
                f"{args.num_samples_per_file} samples of a {self.format_type} file lie between one another, and the loader reads "
                "whole samples; name straightway.dlio.StraightwayReader as reader_classname instead, or use tfrecord"
            )
        format, column = _FORMATS[self.format_type]
        train = self.dataset_type is DatasetType.TRAIN
        files = [str(file) for file in (args.file_list_train if train else args.file_list_eval)]
        if self._loader is not None:
            self._loader.close()
            self._loader = None
        if not files:
            return
        ahead = max(args.prefetch_size, 2)
        batch_bytes = self.batch_size * int(args.record_length + args.record_length_stdev)
        # The order is a function of seed and epoch, the same on every rank.
        shuffle = args.sample_shuffle is not Shuffle.OFF or args.file_shuffle is not Shuffle.OFF
        self._loader = Loader(
            _dataset(os.path.join(args.data_folder, "train" if train else "valid"), files, format, column),
            self.batch_size,
            seed=args.seed,
            shuffle=shuffle,
            epochs=None,
            rank=args.my_rank,
            world=args.comm_size,
            drop_last=True,
            ahead=ahead,
            memory_bytes=max((ahead + 1) * batch_bytes, 256 << 20),
        )

    def next(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        super().next()
        if self._loader is None:
            return
        # DLIO reads once and goes through the epochs; it leaves one at its last batch, before the end is seen.
        for batches in (self._loader.epoch(), self._loader.epoch()):
            first = next(batches, None)
            if first is not None:
                yield first
                yield from batches
                return

    def finalize(self) -> None:
        """Nothing: DLIO calls this after each epoch and goes on with the next. Reading ends with the process, or a new `read`."""


def _dataset(folder: str, files: list[str], format: str, column: str | None) -> Dataset:
    """The samples of files in a folder: of the index beside the folder if that is of the same files, else of a scan."""
    index = f"{folder}.index.arrow"
    if os.path.exists(index):
        dataset = Dataset(index)
        indexed = {os.path.basename(one.uri) for one in dataset.objects}
        if indexed == {os.path.basename(file) for file in files}:
            return dataset
    return Dataset(files, format=format, column=column)


class StraightwayReader(FormatReader):
    """Reads files for DLIO's own data loaders: of npz the array `x` alone, of others the whole file, in one read.

    As from DLIO's readers, samples lie along the last axis of an array of bytes (one sample a file, or as many as divide it evenly),
    images are decoded, and what a batch gets is the array that DLIO keeps for that. Compressed npz is refused: no range of it can
    be read alone.
    """

    def __init__(self, dataset_type: Any, thread_index: int, epoch: int) -> None:
        super().__init__(dataset_type, thread_index)
        self._format = self._args.format
        if self._format not in _READABLE:
            names = ", ".join(str(format.value) for format in _READABLE)
            raise ValueError(
                f"StraightwayReader reads {names}, not {self._format}; for tfrecord name straightway.dlio.StraightwayDataLoader "
                "as data_loader_classname"
            )
        #: Where the array of an npz file is: found once.
        self._places: dict[str, tuple[int, int]] = {}

    def open(self, filename: str) -> Any:
        """What is sampled: an array of bytes with a column for each sample, or the pixels of an image."""
        super().open(filename)
        with _open(filename) as file:
            if self._format is FormatType.NPZ:
                return self._columns(filename, memoryview(file.read(*self._place(filename))))
            content = memoryview(file.read())
        if self._format is FormatType.NPY:
            return self._columns(filename, content[_npy_start(filename, content) :])
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(content)))

    def close(self, filename: str) -> None:
        """Nothing: memory goes with the array."""
        super().close(filename)

    def get_sample(self, filename: str, sample_index: int) -> Any:
        """The sample; DLIO's loaders do not look at it."""
        super().get_sample(filename, sample_index)
        array = self.open_file_map[filename]
        return array if self._format in (FormatType.JPEG, FormatType.PNG) else array[..., sample_index]

    def next(self) -> Iterator[Any]:
        """Batches of this thread's files, for loaders that iterate."""
        yield from super().next()

    def read_index(self, global_sample_idx: int, step: int) -> Any:
        """One sample, for loaders that ask by number."""
        return super().read_index(global_sample_idx, step)

    def finalize(self) -> None:
        """Drops what is open."""
        self.open_file_map.clear()

    def is_index_based(self) -> bool:
        """It is."""
        return True

    def is_iterator_based(self) -> bool:
        """It is."""
        return True

    def _place(self, filename: str) -> tuple[int, int]:
        if filename not in self._places:
            place = Dataset(filename, format="npz", column="x").place(0)
            if place.row is not None:
                raise ValueError(f"{filename} is compressed; generate it with dataset.compression none, or read it by DLIO's own reader")
            self._places[filename] = (place.offset, place.length)
        return self._places[filename]

    def _columns(self, filename: str, content: memoryview) -> Any:
        samples = self._args.num_samples_per_file
        if len(content) == 0 or len(content) % samples:
            raise ValueError(f"{filename} has {len(content)} bytes, which are not {samples} samples of one length")
        return np.frombuffer(content, np.uint8).reshape(-1, samples)


#: What the reader takes.
_READABLE = (FormatType.NPZ, FormatType.NPY, FormatType.JPEG, FormatType.PNG)


def _npy_start(filename: str, content: memoryview) -> int:
    """Where the elements of an npy file begin. Raises `ValueError` for what is none, is no array of bytes, or is cut short."""
    head = io.BytesIO(content[: 1 << 16])
    try:
        version = np.lib.format.read_magic(head)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = header(head)
    except (KeyError, ValueError) as cause:
        raise ValueError(f"{filename} is no npy file: {cause}") from cause
    if dtype != np.uint8 or is_fortran:
        raise ValueError(f"{filename} has {dtype} in {'Fortran' if is_fortran else 'C'} order; DLIO generates bytes in C order")
    if head.tell() + int(np.prod(shape, dtype=object)) != len(content):
        raise ValueError(f"{filename} has {len(content)} bytes, and its header says {shape}")
    return head.tell()


class StraightwayCheckpointing(PyTorchCheckpointing):
    """States as safetensors: aligned writes past the page cache, durable and in place as a whole when `save_state` returns."""

    _only: StraightwayCheckpointing | None = None

    @staticmethod
    def get_instance() -> StraightwayCheckpointing:
        """The one of this process."""
        if StraightwayCheckpointing._only is None:
            StraightwayCheckpointing._only = StraightwayCheckpointing()
        return StraightwayCheckpointing._only

    def __init__(self) -> None:
        super().__init__()
        self.ext = "safetensors"

    def save_state(self, suffix: str, state: Any, fsync: bool = False) -> None:
        """Saves the tensors of `state`. `fsync` changes nothing: what is saved is durable."""
        name = self.get_name(suffix)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        save_file(dict(_tensors("", state)), name)

    def load_state(self, suffix: str, state: Any) -> Any:
        """Reads what `save_state` saved. The tensors in the dicts and lists of `state` are replaced by those that were read, each of
        which is of the same type and shape; so is none if one is not. Returns `state`.

        Raises `KeyError` for a tensor that the file has not, `ValueError` for one of another type or shape, `NotFound`.
        DLIO 2.0 itself loads nothing; later ones call this.
        """
        name = self.get_name(suffix)
        loaded = load_file(name)
        wanted = dict(_tensors("", state))
        missing = [place for place in wanted if place not in loaded]
        if missing:
            raise KeyError(f"{name} has no {missing[0]}, nor {len(missing) - 1} others")
        for place, tensor in wanted.items():
            found = loaded[place]
            if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
                said, asked = (f"{one.dtype} {list(one.shape)}" for one in (found, tensor))
                raise ValueError(f"{name}: {place} is {said}, and {asked} was asked for")
        return _replaced("", state, loaded)


def _tensors(prefix: str, state: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested dicts and lists, with their place as the name."""
    if isinstance(state, torch.Tensor):
        yield prefix, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(f"{prefix}.{key}" if prefix else str(key), value)
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from _tensors(f"{prefix}.{number}" if prefix else str(number), value)


def _replaced(prefix: str, state: Any, loaded: dict[str, torch.Tensor]) -> Any:
    """`state` with the tensors that `_tensors` named taken from `loaded`; dicts and lists stay the same objects."""
    if isinstance(state, torch.Tensor):
        return loaded[prefix]
    if isinstance(state, dict):
        for key, value in state.items():
            state[key] = _replaced(f"{prefix}.{key}" if prefix else str(key), value, loaded)
    elif isinstance(state, (list, tuple)):
        items = [_replaced(f"{prefix}.{number}" if prefix else str(number), value, loaded) for number, value in enumerate(state)]
        if isinstance(state, tuple):
            return tuple(items)
        state[:] = items
    return state
