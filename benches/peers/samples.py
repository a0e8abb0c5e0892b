"""Takes one shuffled epoch of a dataset with one peer and prints one JSON line: what it cost and a digest of the samples.

    samples.py --peer NAME --batch N --seed N LIST

LIST is a JSON file: packing, files, places (file, offset, length of each sample). One process, one epoch. Imports come before
the clock starts. Each sample becomes bytes of Python's own; nothing is decoded. The digest is a sum that does not depend on
the order and costs nothing: how many samples, how many bytes, and the sum of the first eight bytes of each.
Run by `straightway-benches loader`.
"""

import argparse
import itertools
import json
import os
import random
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

MASK = (1 << 64) - 1


class Digest:
    def __init__(self):
        self.samples, self.bytes, self.sum = 0, 0, 0

    def add(self, sample):
        self.samples += 1
        self.bytes += len(sample)
        self.sum = (self.sum + int.from_bytes(sample[:8], "little")) & MASK

    def text(self):
        return f"{self.samples}-{self.bytes}-{self.sum:016x}"


class Files:
    """Opens each file once where there are few of them, as anybody would who reads shards."""

    KEPT_MAX = 512

    def __init__(self, files):
        self.files, self.open = files, {}

    def read(self, file, offset, length):
        if len(self.files) > self.KEPT_MAX:
            fd = os.open(self.files[file], os.O_RDONLY)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        fd = self.open.get(file)
        if fd is None:
            fd = self.open.setdefault(file, os.open(self.files[file], os.O_RDONLY))
        return os.pread(fd, length, offset)


def threads(data, batch, seed, count):
    """Plain Python threads with pread, a bounded number of batches ahead."""
    files, order = Files(data["files"]), list(data["places"])
    random.Random(seed).shuffle(order)

    def run():
        with ThreadPoolExecutor(count) as pool:
            ahead = []
            for at in range(0, len(order), batch):
                ahead.append([pool.submit(files.read, *place) for place in order[at : at + batch]])
                if len(ahead) > 4:
                    yield [future.result() for future in ahead.pop(0)]
            for futures in ahead:
                yield [future.result() for future in futures]

    return run


class Mixer:
    """Draws from a buffer of rows at random, as WebDataset and tf.data shuffle what they can only read in order."""

    KEPT = 1000

    def __init__(self, seed):
        self.random, self.rows = random.Random(seed), []

    def put(self, rows):
        """Takes rows and gives back as many as are too many."""
        for row in rows:
            self.rows.append(row)
            if len(self.rows) > self.KEPT:
                yield self.draw()

    def draw(self):
        at = self.random.randrange(len(self.rows))
        self.rows[at], self.rows[-1] = self.rows[-1], self.rows[at]
        return self.rows.pop()

    def rest(self):
        while self.rows:
            yield self.draw()


class RowGroups:
    """Row groups of Parquet files in random order: what pyarrow can read at once."""

    def __init__(self, files, seed):
        import pyarrow.parquet as pq

        self.files = [pq.ParquetFile(file) for file in files]
        self.order = [(at, group) for at, file in enumerate(self.files) for group in range(file.num_row_groups)]
        random.Random(seed).shuffle(self.order)

    def read(self, file, group):
        return self.files[file].read_row_group(group, use_threads=False).column(0).to_pylist()


def pyarrow_threads(data, batch, seed, count):
    """Plain Python threads that read row groups, and a buffer that is drawn from."""

    def run():
        # A ParquetFile is for one thread.
        local, groups, mixer = threading.local(), RowGroups(data["files"], seed), Mixer(seed)

        def read(file, group):
            if not hasattr(local, "groups"):
                local.groups = RowGroups(data["files"], seed)
            return local.groups.read(file, group)

        def rows(pool):
            ahead = []
            for place in groups.order:
                ahead.append(pool.submit(read, *place))
                if len(ahead) > count:
                    yield from mixer.put(ahead.pop(0).result())
            for future in ahead:
                yield from mixer.put(future.result())
            yield from mixer.rest()

        with ThreadPoolExecutor(count) as pool:
            each = rows(pool)
            while samples := list(itertools.islice(each, batch)):
                yield samples

    return run


def torch_row_groups(data, batch, seed, workers):
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Rows(IterableDataset):
        def __iter__(self):
            info, groups, mixer = get_worker_info(), RowGroups(data["files"], seed), Mixer(seed)
            at, count = (0, 1) if info is None else (info.id, info.num_workers)
            for place in groups.order[at::count]:
                yield from mixer.put(groups.read(*place))
            yield from mixer.rest()

    def run():
        yield from DataLoader(Rows(), batch_size=batch, num_workers=workers, collate_fn=list)

    return run


def streaming(data, batch, seed, workers):
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    def run():
        clean_stale_shared_memory()
        folder = os.path.dirname(data["files"][0])
        # One canonical node: with more, samples come twice where their number is no multiple.
        dataset = StreamingDataset(
            local=folder, shuffle=True, shuffle_seed=seed, batch_size=batch, num_canonical_nodes=1
        )
        rows = DataLoader(
            dataset, batch_size=batch, num_workers=workers, collate_fn=lambda rows: [row["sample"] for row in rows]
        )
        yield from rows

    return run


def torch_loader(data, batch, seed, workers):
    if data["packing"] == "parquet":
        return torch_row_groups(data, batch, seed, workers)
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Places(Dataset):
        def __init__(self):
            self.files = Files(data["files"])

        def __len__(self):
            return len(data["places"])

        def __getitem__(self, index):
            return self.files.read(*data["places"][index])

    def run():
        generator = torch.Generator().manual_seed(seed)
        yield from DataLoader(
            Places(), batch_size=batch, shuffle=True, num_workers=workers, collate_fn=list, generator=generator
        )

    return run


def webdataset(data, batch, seed, workers):
    import webdataset as wds

    def run():
        shards = wds.WebDataset(data["files"], shardshuffle=len(data["files"]), seed=seed, empty_check=False)
        dataset = shards.shuffle(1000).to_tuple("bin").batched(batch, collation_fn=list)
        for samples in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
            yield [sample[0] for sample in samples]

    return run


def tf_data(data, batch, seed):
    import tensorflow as tf

    def run():
        dataset = tf.data.TFRecordDataset(data["files"], num_parallel_reads=4).shuffle(1000, seed=seed)
        for samples in dataset.batch(batch).prefetch(4):
            yield samples.numpy()

    return run


PEERS = {
    "threads-2": lambda *args: threads(*args, 2),
    "threads-8": lambda *args: threads(*args, 8),
    "torch-2": lambda *args: torch_loader(*args, 2),
    "webdataset": lambda *args: webdataset(*args, 0),
    "webdataset-2": lambda *args: webdataset(*args, 2),
    "tf.data": tf_data,
    "streaming": lambda *args: streaming(*args, 0),
    "streaming-2": lambda *args: streaming(*args, 2),
    "pyarrow-2": lambda *args: pyarrow_threads(*args, 2),
    "pyarrow-8": lambda *args: pyarrow_threads(*args, 8),
}


def used():
    """CPU seconds of this process and of its children that ended, and page faults."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    fields = ["ru_utime", "ru_stime", "ru_minflt", "ru_majflt"]
    return [getattr(own, field) + getattr(children, field) for field in fields]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("list")
    args = parser.parse_args()
    with open(args.list) as file:
        data = json.load(file)
    run = PEERS[args.peer](data, args.batch, args.seed)
    digest, first = Digest(), None
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    before, start = used(), time.monotonic()
    for samples in run():
        if first is None:
            first = time.monotonic() - start
        for sample in samples:
            digest.add(sample)
    seconds, after = time.monotonic() - start, used()
    user, system, minor, major = (b - a for a, b in zip(before, after, strict=True))
    result = {
        "ops": digest.samples,
        "bytes": digest.bytes,
        "seconds": seconds,
        "cpu_user_s": user,
        "cpu_sys_s": system,
        "minor_faults": minor,
        "major_faults": major,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss_before_bytes": resident,
        "checksum": digest.text(),
        "more": {"first_batch_ms": (first or 0) * 1000},
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    # The process has done its job; destructors of its libraries are not part of it.
    os._exit(0)


if __name__ == "__main__":
    main()
