"""Writes checkpoints with PyTorch and says what must be found in them: `python make_torch.py DIRECTORY SEED`.

The files in `torch/` were written by `make_torch.py torch 1` and are committed; tests run it again with other seeds
where PyTorch is there. Prints one JSON object: for each checkpoint, its tensors as PyTorch itself reads them back.
"""

import hashlib
import json
import os
import pickle
import struct
import sys
import tempfile
import warnings
import zipfile

warnings.filterwarnings("ignore")
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "complex64": "C64", "float64": "F64", "int64": "I64",
    "uint64": "U64", "complex128": "C128", "complex32": "C32", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
}


def describe(tensor):
    tensor = tensor.detach().contiguous()
    raw = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    digest = hashlib.sha256(raw).hexdigest()
    return {"dtype": NAMES[str(tensor.dtype)[6:]], "shape": list(tensor.shape), "sha256": digest}


def flat(value, path=()):
    """Names as we make them: keys and positions, joined by dots."""
    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {}
    found = {}
    for key, inner in pairs:
        found.update(flat(inner, path + (str(key),)))
    return found


def told(state):
    return {name: describe(tensor) for name, tensor in flat(state).items()}


def some(shape, dtype, generator):
    raw = torch.randint(0, 256, (*shape, torch.empty(0, dtype=dtype).element_size()), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        return raw[..., 0] > 127
    return raw.view(dtype).reshape(shape)


def states(generator):
    every = [getattr(torch, name) for name in NAMES if hasattr(torch, name)]
    base = some((40,), torch.float32, generator)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 6)).sum().backward()
    optimizer.step()
    yield "dtypes.pt", {str(dtype)[6:]: some((3, 5), dtype, generator) for dtype in every}
    yield "shapes.pt", {
        "scalar": torch.tensor(7), "empty": torch.zeros(0, 5), "empty.too": torch.zeros(3, 0), "": torch.ones(1),
        "ünï/cödé \n\"": some((5,), torch.uint8, generator), "deep": torch.zeros([1] * 20 + [3]),
    }
    yield "views.pt", {
        "base": base, "same": base, "tail": base[30:], "rows": base.reshape(8, 5)[2:4], "one": base[7],
        "parameter": torch.nn.Parameter(some((4, 4), torch.bfloat16, generator)),
        "buffer": torch.nn.Buffer(some((4,), torch.int16, generator)),
        "row.of.column": base.reshape(8, 5)[:1, 1:4],
    }
    yield "training.pt", {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.25, "name": "näme",
        "none": None, "flags": [True, False], "tuple": (1, torch.ones(2, dtype=torch.float16)), "raw": b"bytes",
        "torch.device": torch.device("cpu"), "torch.dtype": torch.float32, "torch.size": torch.Size([1, 2]),
        "large": 1 << 80, "set": {1, 2}, "complex": 1 + 2j, 5: torch.ones(1), "empty": {},
    }
    yield "bare.pt", some((2, 3), torch.int32, generator)
    yield "protocol4.pt", {"a": some((2, 300), torch.uint8, generator), "b": [some((9,), torch.float64, generator)]}


def written(folder, generator):
    done = {}
    for name, state in states(generator):
        path = os.path.join(folder, name)
        torch.save(state, path, pickle_protocol=4 if name == "protocol4.pt" else 2)
        done[name] = told(state)
    # What cannot be had as ranges is listed and refused.
    square = some((3, 4), torch.float32, generator)
    torch.save({"turned": square.t(), "spread": torch.ones(1, 3).expand(4, 3), "whole": square},
               os.path.join(folder, "strided.pt"))
    return done


def rank_of(rank, world, folder, store, seed):
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    generator = torch.Generator().manual_seed(seed)
    mesh = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("a", "b"))
    whole = {
        "rows": some((10, 7), torch.float32, generator),
        "columns": some((6, 9), torch.bfloat16, generator),
        "replicated": some((5, 5), torch.int64, generator),
        "grid": some((8, 6), torch.float32, generator),
        "cube": some((3, 8, 5), torch.uint8, generator),
        "few": some((2, 3), torch.float64, generator),
    }
    place = {
        "rows": (mesh, [Shard(0)]), "columns": (mesh, [Shard(1)]), "replicated": (mesh, [Replicate()]),
        "grid": (square, [Shard(0), Shard(1)]), "cube": (mesh, [Shard(1)]), "few": (mesh, [Shard(0)]),
    }
    sharded = {name: distribute_tensor(whole[name], *place[name]) for name in whole}
    state = {
        "model": sharded,
        "plain": torch.arange(11, dtype=torch.int32),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "step": 17,
        "args": {"lr": 0.1, "name": "x"},
    }
    dcp.save(state, checkpoint_id=os.path.join(folder, "dcp"))
    halves = {name: tensor for name, tensor in sharded.items() if name != "few"}
    writer = dcp.HuggingFaceStorageWriter(path=os.path.join(folder, "hf"), save_distributed=True)
    dcp.save(halves, storage_writer=writer)
    if rank == 0:
        told_all = {"dcp": told({"model": whole, "plain": state["plain"], "scalar": state["scalar"], "empty": state["empty"]}),
                    "hf": told({name: whole[name] for name in halves})}
        with open(store + ".json", "w") as file:
            json.dump(told_all, file)
    dist.barrier()
    dist.destroy_process_group()


def distributed(folder, seed):
    with tempfile.TemporaryDirectory() as scratch:
        store = os.path.join(scratch, "store")
        mp.spawn(rank_of, args=(4, folder, store, seed), nprocs=4)
        with open(store + ".json") as file:
            done = json.load(file)
    whole = {"a": torch.arange(6).reshape(2, 3), "nested": {"b": torch.ones(3, dtype=torch.bfloat16)}, "n": 5}
    dcp.save(whole, checkpoint_id=os.path.join(folder, "dcp-one"), no_dist=True)
    done["dcp-one"] = told(whole)
    return done


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/straightway-was-here",)


def zipped(path, pickled, compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", bytes(range(16)))
        archive.writestr("archive/version", b"3\n")


def hostile(folder):
    """Files that torch.load must not be trusted with, or that are no files of torch.save."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89Ntr"
    plain = pickle.dumps({"a": 1}, 2)
    good = b"\x80\x02" + tensor + struct.pack("<I", 0) + b"R."
    zipped(os.path.join(folder, "os-system.pt"), pickle.dumps(Hostile(), 2))
    zipped(os.path.join(folder, "os-system-4.pt"), pickle.dumps({"x": Hostile()}, 4))
    zipped(os.path.join(folder, "compressed.pt"), plain, zipfile.ZIP_DEFLATED)
    zipped(os.path.join(folder, "big-endian.pt"), plain, order=b"big")
    zipped(os.path.join(folder, "python-zip.pt"), plain)
    for name, old, new in [
        ("past-storage.pt", b"K\x04\x85K\x01\x85", b"K\x05\x85K\x01\x85"),
        ("offset-past-storage.pt", b"K\x00K\x04\x85", b"K\x01K\x04\x85"),
        ("no-storage.pt", b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),
        ("other-length.pt", b"cpuK\x04", b"cpuK\x03"),
        ("negative-shape.pt", b"K\x04\x85K\x01\x85", b"J\xff\xff\xff\xff\x85K\x01\x85"),
        ("huge-shape.pt", b"K\x04\x85K\x01\x85", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85"),
        ("strides-missing.pt", b"K\x01\x85\x89", b")\x89"),
        ("unknown-storage.pt", b"FloatStorage", b"QInt8Storage"),
    ]:
        bad = good.replace(b"r" + struct.pack("<I", 0), b"")
        assert bad.count(old) == 1, name
        zipped(os.path.join(folder, name), bad.replace(old, new))
    # Nested deeper than anybody reads, in a circle, and shared to 2^40 leaves.
    zipped(os.path.join(folder, "deep.pt"), b"\x80\x02" + b"]" * 1000 + b"K\x01" + b"a" * 1000 + b".")
    zipped(os.path.join(folder, "circle.pt"), b"\x80\x02]q\x00h\x00a.")
    bomb = b"\x80\x02](K\x01K\x01eq\x00"
    for level in range(1, 41):
        bomb += b"]q" + bytes([level]) + b"(h" + bytes([level - 1]) + b"h" + bytes([level - 1]) + b"e"
    zipped(os.path.join(folder, "memo-bomb.pt"), bomb + b".")
    torch.save({"a": torch.ones(1)}, os.path.join(folder, "legacy.pt"), _use_new_zipfile_serialization=False)
    sparse = torch.eye(3).to_sparse()
    torch.save({"sparse": sparse, "dense": torch.ones(2)}, os.path.join(folder, "sparse.pt"))


def main():
    folder, seed = sys.argv[1], int(sys.argv[2])
    os.makedirs(folder, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    done = written(folder, generator)
    done.update(distributed(folder, seed))
    if len(sys.argv) > 3:
        os.makedirs(sys.argv[3], exist_ok=True)
        hostile(sys.argv[3])
    answer = {"version": torch.__version__, "checkpoints": done}
    with open(os.path.join(folder, "expect.json"), "w") as file:
        json.dump(answer, file, indent=1, sort_keys=True)
        file.write("\n")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
