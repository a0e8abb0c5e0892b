"""Ray Data on samples that straightway reads: the road past one machine.

::

    import ray, straightway.ray
    samples = ray.data.read_datasource(straightway.ray.SampleSource("/data/train.index"))
    samples.map_batches(decode).iter_torch_batches(...)

Each read task takes a run of neighbours from the index and reads it by an engine of its worker's process. What the workers see
must be the same files: a shared mount, or an object store.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from os import PathLike
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from . import Dataset, Loader

__all__ = ["SampleSource"]

#: Samples of a block at most: blocks are what Ray moves between its processes.
_BLOCK_SAMPLES = 1024
#: Bytes of a block, about; a block has at least one sample.
_BLOCK_BYTES = 64 << 20

_SCHEMA = pa.schema([("key", pa.string()), ("bytes", pa.large_binary())])


class SampleSource(Datasource):
    """Rows `key` and `bytes`, one for each sample, in the order of the index.

    `uri` is an index file, or what `straightway.Dataset` takes; an index spares every task the scan.
    """

    def __init__(
        self, uri: str | PathLike[str] | list[str], *, format: str | None = None, column: str | None = None
    ) -> None:
        super().__init__()
        self._dataset = partial(Dataset, uri, format=format, column=column)
        dataset = self._dataset()
        self._len = len(dataset)
        self._bytes = sum(one.size for one in dataset.objects)

    def get_name(self) -> str:
        """For Ray's dashboard."""
        return "Straightway"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the files that they lie in."""
        return self._bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """At most `parallelism` tasks of nearly equal numbers of samples."""
        count = max(1, min(parallelism, self._len))
        cuts = [self._len * task // count for task in range(count + 1)]
        mean = self._bytes // max(1, self._len)
        tasks = []
        for start, stop in zip(cuts, cuts[1:]):
            size = mean * (stop - start)
            metadata = BlockMetadata(num_rows=stop - start, size_bytes=size, exec_stats=None)
            batch = max(1, min(_BLOCK_SAMPLES, _BLOCK_BYTES // max(1, mean)))
            read = partial(_read, self._dataset, start, stop, batch)
            tasks.append(ReadTask(read, metadata, schema=_SCHEMA, per_task_row_limit=per_task_row_limit))
        return tasks


def _read(make: Any, start: int, stop: int, batch_size: int) -> Iterable[pa.Table]:
    """Blocks of a run of samples."""
    left = stop - start
    if left == 0:
        return
    # Little is read ahead: what lies behind the run is another task's.
    with Loader(make(), batch_size=min(batch_size, left), shuffle=False, ahead=2) as loader:
        loader.seek(start)
        for batch in loader:
            count = min(left, len(batch))
            values = pa.array([bytes(batch[number]) for number in range(count)], pa.large_binary())
            yield pa.table({"key": pa.array(batch.keys[:count], pa.string()), "bytes": values}, schema=_SCHEMA)
            left -= count
            if left == 0:
                return
