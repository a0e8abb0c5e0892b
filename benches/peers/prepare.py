"""Writes the tensors of safetensors files again in the formats that torch and tensorizer read.

    prepare.py torch|tensorizer OUT_DIR FILE...

Each FILE becomes OUT_DIR/<its name>.pt or .tensors. Existing outputs are kept; a new one is written beside and renamed.
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


def main():
    kind, folder, files = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
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
