"""Plug-ins for DLIO, the benchmark under MLPerf Storage: named by class in a workload, without a change to DLIO.

::

    reader:
      data_loader: pytorch
      data_loader_classname: straightway.dlio.StraightwayDataLoader
      data_loader_sampler: index
    checkpoint:
      checkpoint_mechanism_classname: straightway.dlio.StraightwayCheckpointing

The formats `npz`, `npy`, `tfrecord`, `jpeg` and `png` are read: whole samples, bytes as they are stored. A step is handed over
when all bytes of its batch are in memory of this process, as MLPerf's rules ask. DLIO's own loaders drop what they read and
hand over one array again and again; this one hands over what it read.

Where `DATA_FOLDER/train.index.arrow` is an index of the files of `DATA_FOLDER/train` (`valid` likewise), samples are looked up
there; without one every rank scans the files before the first epoch, which reads through all of a TFRecord file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from dlio_benchmark.checkpointing.pytorch_checkpointing import PyTorchCheckpointing
from dlio_benchmark.common.enumerations import DataLoaderType, DatasetType, FormatType, Shuffle
from dlio_benchmark.data_loader.base_data_loader import BaseDataLoader

from . import Dataset, Loader
from .torch import load_file, save_file

__all__ = ["StraightwayCheckpointing", "StraightwayDataLoader"]

#: What DLIO calls a format, what it is called here, and the array of it that is the sample.
_FORMATS = {
    FormatType.NPZ: ("npz", "x"),
    FormatType.NPY: ("npy", None),
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

    def load_state(self, suffix: str, state: Any) -> None:
        """Reads what `save_state` saved, into memory of its own."""
        loaded = load_file(self.get_name(suffix))
        missing = [name for name, _ in _tensors("", state) if name not in loaded]
        if missing:
            raise KeyError(f"{self.get_name(suffix)} has no {missing[0]}, nor {len(missing) - 1} others")


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
