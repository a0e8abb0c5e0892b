"""Loads a checkpoint into CPU memory with one peer and prints one JSON line: what it cost and a digest of sampled bytes.

    load.py --peer NAME --seed N FILE...

One process, one load. Imports come before the clock starts; the digest is taken after it stops. A peer whose tensors are
views of the page cache reads one byte of each page inside the clock, or its load would not have happened yet.
Run by `straightway-benches load`, which also chooses the files (torch and tensorizer read their own formats: prepare.py).
"""

import argparse
import hashlib
import json
import mmap
import os
import resource
import sys
import threading
import time

PAGE = 4096
MASK = (1 << 64) - 1
SAMPLES, SAMPLE_BYTES = 8, 16


def splitmix64(state):
    """Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", the output for `state`."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def digest(tensors, seed):
    """SHA-256 over name and eight samples of 16 bytes of each tensor, in order of name. `tensors`: name -> bytes-like."""
    sha = hashlib.sha256()
    for index, name in enumerate(sorted(tensors)):
        data = tensors[name]
        sha.update(name.encode())
        places = max(len(data) - SAMPLE_BYTES + 1, 1)
        for sample in range(SAMPLES):
            at = splitmix64((seed + index * SAMPLES + sample) & MASK) % places
            sha.update(bytes(data[at : at + SAMPLE_BYTES]))
    return sha.hexdigest()


def flat(tensor):
    """The bytes of a torch tensor as a numpy array of uint8, without a copy."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def touch(tensors):
    for tensor in tensors.values():
        flat(tensor)[::PAGE].sum()
    return tensors


def header(path):
    """Tensor name -> (start, end) in the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    base = 8 + length
    return {name: [base + at for at in entry["data_offsets"]] for name, entry in entries.items()}


def plain_reads(files, threads, flags):
    """preadv of whole files into anonymous memory, 8 MiB at a time, by `threads` threads."""
    piece, jobs, buffers = 8 << 20, [], []
    for path in files:
        size = os.stat(path).st_size
        memory = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fd = os.open(path, os.O_RDONLY | flags)
        view = memoryview(memory)
        jobs += [(fd, view[at : at + piece], at, min(piece, size - at)) for at in range(0, size, piece)]
        buffers.append((path, view))
    queue, lost = Locked(iter(jobs)), []

    def work():
        for fd, view, at, want in queue:
            if (got := os.preadv(fd, [view], at)) != want:
                lost.append((at, got, want))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not lost, lost
    return {name: view[a:b] for path, view in buffers for name, (a, b) in header(path).items()}


class Locked:
    """An iterator that several threads may take from."""

    def __init__(self, iterator):
        self.iterator, self.lock = iterator, threading.Lock()

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            return next(self.iterator)


def safetensors_mmap(files):
    from safetensors.torch import load_file

    return lambda: touch({k: v for path in files for k, v in load_file(path).items()})


def safetensors_clone(files):
    from safetensors.torch import load_file

    return lambda: {k: v.clone() for path in files for k, v in load_file(path).items()}


def safetensors_bytes(files):
    from safetensors.torch import load

    def run():
        tensors = {}
        for path in files:
            with open(path, "rb") as file:
                tensors.update(load(file.read()))
        return tensors

    return run


def torch_load(files, mapped):
    import torch

    def run():
        tensors = {}
        for path in files:
            tensors.update(torch.load(path, mmap=mapped, weights_only=True, map_location="cpu"))
        return touch(tensors) if mapped else tensors

    return run


def fastsafetensors_nogds(files):
    import torch  # noqa: F401  fastsafetensors imports it at its first use, which would fall inside the clock
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def run():
        loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
        loader.add_filenames({0: list(files)})
        buffers = loader.copy_files_to_device()
        run.keep = loader, buffers
        return {name: buffers.get_tensor(name) for name in loader.get_keys()}

    return run


def runai(files, concurrency):
    # No limit: the tensors stay in the streamer's buffer for good. Under a limit they pass through a ring, and each would be copied once more.
    os.environ.update(RUNAI_STREAMER_CONCURRENCY=str(concurrency), RUNAI_STREAMER_MEMORY_LIMIT="-1")
    from runai_model_streamer import SafetensorsStreamer

    def run():
        streamer = SafetensorsStreamer()
        run.keep = streamer.__enter__(), streamer
        streamer.stream_files(list(files))
        return dict(streamer.get_tensors())

    return run


def tensorizer(files, hashes):
    from tensorizer import TensorDeserializer

    def run():
        tensors, run.keep = {}, []
        for path in files:
            deserializer = TensorDeserializer(path, device="cpu", verify_hash=hashes)
            run.keep.append(deserializer)
            tensors.update((name, deserializer[name]) for name in deserializer.keys())
        return tensors

    return run


def dcp_load(files, ours):
    import torch
    import torch.distributed.checkpoint as dcp

    if ours:
        from straightway.torch.checkpoint import StorageReader
    else:
        from torch.distributed.checkpoint import FileSystemReader as StorageReader

    def run():
        reader = StorageReader(os.path.dirname(files[0]))
        described = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in described.items()}
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        return tensors

    return run


PEERS = {
    "dcp": lambda files: dcp_load(files, False),
    "straightway-dcp": lambda files: dcp_load(files, True),
    "safetensors": safetensors_mmap,
    "safetensors-clone": safetensors_clone,
    "safetensors-bytes": safetensors_bytes,
    "torch-mmap": lambda files: torch_load(files, True),
    "torch": lambda files: torch_load(files, False),
    "fastsafetensors": fastsafetensors_nogds,
    "runai-2": lambda files: runai(files, 2),
    "runai-16": lambda files: runai(files, 16),
    "tensorizer": lambda files: tensorizer(files, False),
    "preadv-2": lambda files: lambda: plain_reads(files, 2, 0),
    "preadv-direct-4": lambda files: lambda: plain_reads(files, 4, os.O_DIRECT),
}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Meter:
    """What the process used since it was made, and how long that took."""

    def __init__(self):
        self.rss, self.usage, self.start = resident(), resource.getrusage(resource.RUSAGE_SELF), time.monotonic()

    def stop(self):
        seconds, before, after = time.monotonic() - self.start, self.usage, resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": seconds,
            "cpu_user_s": after.ru_utime - before.ru_utime,
            "cpu_sys_s": after.ru_stime - before.ru_stime,
            "minor_faults": after.ru_minflt - before.ru_minflt,
            "major_faults": after.ru_majflt - before.ru_majflt,
            "peak_rss_bytes": after.ru_maxrss * 1024,
            "rss_before_bytes": self.rss,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    run = PEERS[args.peer](args.files)
    meter = Meter()
    tensors = run()
    used = meter.stop()
    views = {name: data if isinstance(data, memoryview) else flat(data) for name, data in tensors.items()}
    result = {
        "ops": len(views),
        "bytes": sum(len(view) for view in views.values()),
        **used,
        "checksum": digest(views, args.seed),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    # The process has done its job; destructors of eleven libraries are not part of it.
    os._exit(0)


if __name__ == "__main__":
    main()
