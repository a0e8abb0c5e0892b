"""torch on the other side of the Rust tests (`tests/dcp.rs`): reads a DCP directory and prints what it finds.

dcp.py read DIRECTORY    one JSON document: version, tensors (dtype, shape, sha256 of the bytes), objects
dcp.py single DIRECTORY  converts it with torch's own converter, and prints the names
dcp.py object FILE       writes the number 7 with torch.save
"""

import hashlib
import io
import json
import os
import sys
import warnings
import zipfile

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

warnings.filterwarnings("ignore")


def digest(tensor):
    raw = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)
    return hashlib.sha256(bytes(raw.tolist()) if raw.numel() < 1 << 16 else raw.numpy().tobytes()).hexdigest()


def main(directory):
    metadata = dcp.FileSystemReader(directory).read_metadata()
    want = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            want[name] = torch.zeros(entry.size, dtype=entry.properties.dtype)
        else:
            want[name] = None
    dcp.load(want, checkpoint_id=directory, no_dist=True)
    tensors, objects, aligned = {}, {}, True
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(value.shape), "sha256": digest(value)}
        else:
            objects[name] = value
    # Each blob for itself: as torch.load takes it, and as the ZIP module sees it, which compares every CRC.
    for index, info in metadata.storage_data.items():
        with open(os.path.join(directory, info.relative_path), "rb") as file:
            file.seek(info.offset)
            blob = file.read(info.length)
        torch.load(io.BytesIO(blob), weights_only=True)
        archive = zipfile.ZipFile(io.BytesIO(blob))
        assert archive.testzip() is None, index
        for entry in archive.infolist():
            if entry.filename.endswith("data/0") and entry.file_size > 0:
                at = entry.header_offset
                name, extra = (int.from_bytes(blob[at + n : at + n + 2], "little") for n in (26, 28))
                align = 4096 if entry.file_size >= 1 << 16 else 64
                aligned &= (info.offset + at + 30 + name + extra) % align == 0
    print(json.dumps({"version": torch.__version__, "tensors": tensors, "objects": objects, "aligned": aligned}))


def single(directory):
    # The converter that users call: nested names come from the planner's data.
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(directory, os.path.join(directory, "all.pt"))
    state = torch.load(os.path.join(directory, "all.pt"), weights_only=True)
    print(json.dumps({"names": sorted(state)}))


def seven(path):
    torch.save(7, path)
    print("{}")


if __name__ == "__main__":
    {"read": main, "single": single, "object": seven}[sys.argv[1]](sys.argv[2])
