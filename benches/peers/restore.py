"""Restores a model on several local ranks from a DCP directory with one peer and prints one JSON line: what all ranks cost.

    restore.py --write WORLD --shape SHAPE --to DIRECTORY FILE...
    restore.py --peer NAME --ranks N --shape SHAPE --from DIRECTORY --seed N FILE...

Each rank is a process; they meet by gloo. FILE are the safetensors files that the model was made of: the first form writes
them as a DCP directory by torch's own writer on WORLD ranks, the second compares what was restored with them, after the clock.

The destinations are there and touched before the clock starts, as those of a model that was initialised. It runs from the
first rank that begins to the last that is done. `storage_bytes` is what the kernel read from storage for all ranks
(/proc/self/io, read_bytes), `asked_bytes` what our reader says that it read.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings

from load import MASK, SAMPLE_BYTES, SAMPLES, Meter, flat, header, splitmix64

warnings.filterwarnings("ignore")

# How a model lies on its ranks. `sharded`: weights by rows, as FSDP and tensor parallelism have them, everything else on every
# rank. `replicated`: everything on every rank, as data parallelism has it.
SHAPES = ("sharded", "replicated")


def join(rank, world, meeting):
    import torch
    import torch.distributed as dist

    # As launchers of several ranks on one machine set it.
    torch.set_num_threads(1)
    # As trainers run (torchtitan always, Megatron with --manual-gc): a full collection of what importing torch leaves takes
    # 0.2 s of each rank, and would fall into some loads and not into others.
    gc.collect()
    gc.disable()
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=world)


def laid_out(tensors, shape, world):
    """The state dict of this rank. It has memory of its own."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh, rank = init_device_mesh("cpu", (world,)), dist.get_rank()
    state = {}
    for name, tensor in tensors.items():
        if shape != "replicated" and tensor.dim() > 1:
            local = tensor.chunk(world)[rank].clone(memory_format=torch.contiguous_format)
            state[name] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        else:
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
    return state


def write(args):
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    join(args.rank, args.write, args.meeting)
    tensors = {name: tensor for path in args.files for name, tensor in load_file(path).items()}
    dcp.save(laid_out(tensors, args.shape, args.write), storage_writer=dcp.FileSystemWriter(args.to, sync_files=True))
    dist.barrier()
    return {}


def read_bytes():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


def load(peer, state, source):
    """Fills the state, and gives the reader that did."""
    import torch.distributed.checkpoint as dcp

    if peer == "straightway-own":
        from straightway.torch import load_state_dict_together

        return load_state_dict_together(state, source)
    if peer == "torch":
        reader = dcp.FileSystemReader(source)
    else:
        from straightway.torch.checkpoint import StorageReader

        reader = StorageReader(source, share=True)
    dcp.load(state, storage_reader=reader)
    return reader


def check(state, files, seed):
    """Compares samples of what this rank has with the files that the model was made of."""
    where = {name: (path, place) for path in files for name, place in header(path).items()}
    for index, name in enumerate(sorted(state)):
        value = state[name]
        at = 0
        if hasattr(value, "to_local"):
            from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

            _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
            at = offset[0] * value.stride()[0] * value.element_size()
            value = value.to_local()
        ours, (path, (start, _)) = flat(value), where[name]
        fd = os.open(path, os.O_RDONLY)
        places = [0, max(len(ours) - SAMPLE_BYTES, 0)]
        for sample in range(SAMPLES):
            places.append(splitmix64((seed + index * SAMPLES + sample) & MASK) % max(len(ours) - SAMPLE_BYTES + 1, 1))
        for place in places:
            here = bytes(ours[place : place + SAMPLE_BYTES])
            assert here == os.pread(fd, len(here), start + at + place), f"other bytes at {place} of {name}"
        os.close(fd)


def restore(args):
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint  # noqa: F401  before the clock

    join(args.rank, args.ranks, args.meeting)
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32}
    tensors = {}
    for path in args.files:
        with open(path, "rb") as file:
            entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in entries.items():
            # Without memory: what a rank has is cut out of it.
            tensors[name] = torch.full((1,), 7, dtype=kinds[entry["dtype"]]).expand(entry["shape"])
    state = laid_out(tensors, args.shape, args.ranks)
    if args.peer != "torch":
        import straightway.torch._together  # noqa: F401  imports come before the clock, for every peer
    dist.barrier()
    meter, stored, start = Meter(), read_bytes(), time.monotonic()
    reader = load(args.peer, state, args.source)
    end = time.monotonic()
    used = meter.stop()
    result = {**used, "start": start, "end": end, "storage_bytes": read_bytes() - stored}
    result["asked_bytes"] = getattr(reader, "read_bytes", None)
    exchanged = getattr(reader, "exchanged", {})
    result["from_memory_bytes"], result["from_group_bytes"] = exchanged.get("memory"), exchanged.get("group")
    result["ways"] = [str(way) for way in getattr(reader, "ways", [])]
    result["unique_bytes"] = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
    locals_ = [value.to_local() if hasattr(value, "to_local") else value for value in state.values()]
    result["bytes"] = sum(value.numel() * value.element_size() for value in locals_)
    check(state, args.files, args.seed)
    dist.barrier()
    return result


def start_ranks(args, world):
    """Starts this script once for each rank, and gives what they printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, "--meeting", os.path.join(folder, "meeting")]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(world)
        ]
        lines = [rank.communicate()[0] for rank in ranks]
        failed = [(number, rank.returncode) for number, rank in enumerate(ranks) if rank.returncode]
        if failed:
            sys.exit(f"ranks failed (rank, status): {failed}")
    return [json.loads(line.splitlines()[-1]) for line in lines]


def summed(ranks):
    def total(name):
        return sum(rank[name] for rank in ranks)

    names = ("cpu_user_s", "cpu_sys_s", "minor_faults", "major_faults", "bytes")
    more = {
        "unique_bytes": ranks[0]["unique_bytes"],
        "storage_bytes": total("storage_bytes"),
        "rank_extra_bytes": max(rank["peak_rss_bytes"] - rank["rss_before_bytes"] for rank in ranks),
    }
    for name in ("asked_bytes", "from_memory_bytes", "from_group_bytes"):
        if all(rank[name] is not None for rank in ranks):
            more[name] = total(name)
    return {
        "ops": len(ranks),
        "seconds": max(rank["end"] for rank in ranks) - min(rank["start"] for rank in ranks),
        **{name: total(name) for name in names},
        "more": more,
        "path": ranks[0]["ways"] or None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=int)
    parser.add_argument("--to")
    parser.add_argument("--peer", choices=["torch", "straightway", "straightway-own"])
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--from", dest="source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--meeting")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.rank is None:
        ranks = start_ranks(args, args.write or args.ranks)
        result = {"ops": len(ranks)} if args.write else summed(ranks)
    else:
        result = write(args) if args.write else restore(args)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
