"""Saves a checkpoint from CPU memory with one peer and prints one JSON line: what it cost, and a digest of what was saved.

    save.py --peer NAME --seed N --to DIRECTORY --harness PROGRAM FILE...

One process, one save. Imports and the tensors' own memory come before the clock starts; it stops when every byte is
durable. `stall_s` is how long the caller was held. The digest is of what is read back, after the clock.
"""

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings

from load import PAGE, Locked, Meter, digest, flat

warnings.filterwarnings("ignore")


def own_tensors(files):
    from safetensors.torch import load_file

    return {name: tensor.clone() for path in files for name, tensor in load_file(path).items()}


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def torch_save(tensors, to):
    import torch

    path = os.path.join(to, "model.pt")

    def run():
        torch.save(tensors, path)
        sync(path)
        sync(to)

    return run, lambda: torch.load(path, mmap=True, weights_only=True)


def safetensors_save(tensors, to):
    from safetensors.torch import load_file, save_file

    path = os.path.join(to, "model.safetensors")

    def run():
        save_file(tensors, path)
        sync(path)
        sync(to)

    return run, lambda: load_file(path)


def dcp_save(tensors, to, writer, asynchronous):
    import torch
    import torch.distributed.checkpoint as dcp

    def run():
        if not asynchronous:
            dcp.save(tensors, storage_writer=writer(to), no_dist=True)
            return None
        started = time.monotonic()
        future = dcp.async_save(tensors, storage_writer=writer(to), no_dist=True)
        stall = time.monotonic() - started
        future.result()
        return stall

    def back():
        loaded = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        dcp.load(loaded, checkpoint_id=to, no_dist=True)
        return loaded

    return run, back


def their_writer(to):
    import torch.distributed.checkpoint as dcp

    return dcp.FileSystemWriter(to, thread_count=4, sync_files=True)


def our_async_save(tensors, to, staging):
    """Under the same `async_save`: into fresh memory, the memory that a save before left (`kept`), or memory made before (`ahead`)."""
    import torch.distributed.checkpoint as dcp
    from straightway.torch.checkpoint import StorageWriter

    writer = StorageWriter(to, cache_staged_state_dict=staging == "kept")
    if staging == "kept":
        dcp.async_save(tensors, storage_writer=writer, no_dist=True).result()
    if staging == "ahead":
        writer.prepare(tensors)
        # A training step lies between in real life.
        for thread in threading.enumerate():
            if thread.name == "straightway-prepare":
                thread.join()
    return dcp_save(tensors, to, lambda _: writer, True)


def direct_writes(tensors, to, threads):
    """The ceiling: the same number of bytes from memory that is there, in aligned pieces, into space that is reserved."""
    size, piece, path = sum(len(flat(tensor)) for tensor in tensors.values()), 8 << 20, os.path.join(to, "bytes")
    size = -(-size // PAGE) * PAGE
    source = mmap.mmap(-1, piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    source.write(os.urandom(piece))

    def run():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
        os.posix_fallocate(fd, 0, size)
        view, places = memoryview(source), Locked(iter(range(0, size, piece)))

        def work():
            for at in places:
                want = min(piece, size - at)
                assert os.pwritev(fd, [view[:want]], at) == want

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os.fsync(fd)
        os.close(fd)
        sync(to)

    return run, None


PEERS = {
    "torch": torch_save,
    "safetensors": safetensors_save,
    "dcp": lambda tensors, to: dcp_save(tensors, to, their_writer, False),
    "dcp-async": lambda tensors, to: dcp_save(tensors, to, their_writer, True),
    "straightway-async": lambda tensors, to: our_async_save(tensors, to, "fresh"),
    "straightway-async-kept": lambda tensors, to: our_async_save(tensors, to, "kept"),
    "straightway-async-ahead": lambda tensors, to: our_async_save(tensors, to, "ahead"),
    "pwrite-direct-2": lambda tensors, to: direct_writes(tensors, to, 2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--harness", required=True)
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    shutil.rmtree(args.to, ignore_errors=True)
    os.makedirs(args.to)
    tensors = own_tensors(args.files)
    run, back = PEERS[args.peer](tensors, args.to)
    os.sync()
    # The host took back what the harness had backed, while the tensors were made. A copy, and the page cache of what is written or
    # another copy.
    size = sum(len(flat(tensor)) for tensor in tensors.values())
    subprocess.run([args.harness, "worker", "prepare", str(size * 9 // 4)], check=True)
    meter = Meter()
    stall = run()
    used = meter.stop()
    result = {
        "ops": len(tensors),
        "bytes": size,
        **used,
        "more": {"stall_s": used["seconds"] if stall is None else stall},
    }
    if back is not None:
        result["checksum"] = digest({name: flat(tensor) for name, tensor in back().items()}, args.seed)
    shutil.rmtree(args.to)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
