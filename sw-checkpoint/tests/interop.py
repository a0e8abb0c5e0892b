"""The real `safetensors` package on the other side of the Rust tests (`tests/interop.rs`).

interop.py read FILE...        print, for each file, what the package finds in it, as one JSON document
interop.py write DIR SEED      write files with the package from a seed, and print what it put into them
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
import safetensors
from safetensors.numpy import save_file


def digest(data):
    return hashlib.sha256(bytes(data)).hexdigest()


def read(path):
    # Twice: `safe_open` is what users call; `deserialize` also gives types that numpy has no name for.
    raw = pathlib.Path(path).read_bytes()
    tensors = {
        name: {"dtype": entry["dtype"], "shape": list(entry["shape"]), "sha256": digest(entry["data"])}
        for name, entry in safetensors.deserialize(raw)
    }
    with safetensors.safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == sorted(tensors), "the package disagrees with itself"
        metadata = file.metadata() or {}
        for name in file.keys():
            if tensors[name]["dtype"] in ("F32", "I64", "U8", "F16", "C64"):
                assert digest(file.get_tensor(name).tobytes()) == tensors[name]["sha256"], name
    return {"metadata": metadata, "tensors": tensors}


def write(folder, seed):
    rng = np.random.default_rng(seed)
    kinds = ["u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
    done = {}
    for number in range(12):
        tensors = {}
        for at in range(int(rng.integers(0, 30))):
            shape = [int(n) for n in rng.integers(0, 6, int(rng.integers(0, 4)))]
            dtype = np.dtype(kinds[int(rng.integers(len(kinds)))])
            raw = rng.bytes(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            tensors[f"layer.{at}.wéight"] = np.frombuffer(raw, dtype).reshape(shape)
        path = str(pathlib.Path(folder) / f"theirs-{number}.safetensors")
        save_file(tensors, path, metadata={"number": str(number)} if number % 2 else None)
        done[path] = read(path)
    return done


def main():
    if sys.argv[1] == "read":
        result = {path: read(path) for path in sys.argv[2:]}
    else:
        result = write(sys.argv[2], int(sys.argv[3]))
    json.dump({"version": safetensors.__version__, "files": result}, sys.stdout)


main()
