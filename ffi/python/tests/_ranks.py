"""Ranks of a job, as processes of one machine that talk by gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANKS = r"""
import atexit, os, sys, time, warnings
warnings.simplefilter("ignore")
# The mesh keeps the job's group, with its threads, past the end: one that lets go of a tensor of the last collective when the
# interpreter has begun to end calls std::terminate.
atexit.register(time.sleep, 0.05)
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from straightway.torch.checkpoint import StorageReader, StorageWriter
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=world)
mesh = init_device_mesh("cpu", (world,))
def whole(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
SHAPES = {"rows": (400, 500), "columns": (400, 500), "same": (300, 1000), "odd": (7, 3)}
def sharded(tensors):
    places = {"rows": Shard(0), "columns": Shard(1), "same": Replicate(), "odd": Shard(0)}
    return {name: distribute_tensor(tensor, mesh, [places[name]]) for name, tensor in tensors.items()}
def check(loaded, seed):
    for name, tensor in whole(seed).items():
        assert torch.equal(loaded[name].full_tensor(), tensor), name
"""


def _hears_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ranks(tmp_path: Path, world: int, body: str, folder: Path, check: bool = True) -> list[subprocess.CompletedProcess[str]]:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS + body)
    meeting = tmp_path / f"meeting-{time.monotonic_ns()}"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(folder), str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=_hears_sigint,
        )
        for rank in range(world)
    ]
    done = []
    for process in started:
        try:
            out, err = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
            raise
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    if check:
        assert all(process.returncode == 0 for process in done), "\n".join(process.stderr[-3000:] for process in done)
    return done


def failures(error: BaseException) -> dict[int, BaseException]:
    """What each rank raised, out of torch's collection of it; rank 0 for an error that is none."""
    found = getattr(error, "failures", None)
    return {0: error} if found is None else {rank: failure[0] for rank, failure in found.items()}
