"""Takes one shuffled epoch of a dataset with one peer and prints one JSON line: what it cost and a digest of the samples.

    samples.py --peer NAME --batch N --seed N LIST

LIST is a JSON file: packing, files, places (file, offset, length of each sample). One process, one epoch. Imports come before
the clock starts. Each sample becomes bytes of Python's own; nothing is decoded. The digest is a sum that does not depend on
the order and costs nothing: how many samples, how many bytes, and the sum of the first eight bytes of each.
Run by `straightway-benches loader`.
"""

import argparse
import json
import os
import random
import resource
import sys
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


def torch_loader(data, batch, seed, workers):
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
