"""Writes a checkpoint of Megatron's torch_dist back end: `python make_megatron.py DIRECTORY`. Needs megatron-core and torch.

The one in `megatron/` was written by megatron-core 0.16.1 and is committed.
"""

import os
import sys

os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29571")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402


def main():
    # The writer waits for a GPU's streams, also where there is no GPU.
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    dist.init_process_group("gloo")
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor

    weight = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    half = torch.arange(10, dtype=torch.bfloat16)
    state = {
        "weight": ShardedTensor.from_rank_offsets("decoder.weight", weight),
        "half": ShardedTensor.from_rank_offsets("decoder.half", half),
        "extra": ShardedObject("decoder.extra", {"a": 1}, (1,), (0,)),
        "iteration": 7,
        "lr": 0.1,
        "rng": torch.arange(3),
    }
    folder = os.path.join(sys.argv[1], "iter_0000007")
    os.makedirs(folder, exist_ok=True)
    dist_checkpointing.save(state, folder)
    with open(os.path.join(sys.argv[1], "latest_checkpointed_iteration.txt"), "w") as tracker:
        tracker.write("7")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
