"""Writes the tensors of safetensors files again in the formats that torch and tensorizer read.

    prepare.py torch|tensorizer|dcp OUT_DIR FILE...

Each FILE becomes OUT_DIR/<its name>.pt or .tensors; for dcp OUT_DIR becomes one checkpoint of all of them, by one process. Existing outputs are kept; a new one is written beside and renamed.
"""

import os
import sys
from pathlib import Path

from safetensors.torch import load_file


def write_torch(path, tensors):
    import torch

    torch.save(tensors, path)


def write_tensorizer(path, tensors):
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(path)
    serializer.write_state_dict(tensors)
    serializer.close()


def write_dcp(folder, files):
    import torch.distributed.checkpoint as dcp

    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    partial = folder.with_name(f"partial-{os.getpid()}-{folder.name}")
    # As many files as the checkpoint has shards.
    writer = dcp.FileSystemWriter(partial, thread_count=len(files), sync_files=True)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    partial.rename(folder)


def main():
    kind, folder, files = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if kind == "dcp":
        if not folder.exists():
            write_dcp(folder, files)
        for file in sorted(folder.iterdir()):
            sys.stdout.write(f"{file}\n")
        return
    write, suffix = {"torch": (write_torch, ".pt"), "tensorizer": (write_tensorizer, ".tensors")}[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        out = folder / (Path(file).stem + suffix)
        if not out.exists():
            partial = out.with_name(f"partial-{os.getpid()}-{out.name}")
            write(str(partial), load_file(file))
            partial.rename(out)
        sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    main()
