"""Writes the golden and hostile files of this directory. How and with what: README.md.

Golden files come from the real `safetensors` package. Hostile ones are put together byte by byte; `hostile/expect.tsv`
says which error code each must give.
"""

import json
import pathlib
import struct

import numpy as np
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
# Names that the package takes for raw bytes, beside those of numpy. It cannot write the 6-bit types from Python.
RAW = [
    "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float4_e2m1fn_x2",
]  # fmt: skip


def pattern(n):
    return bytes((i * 37 + 11) % 251 for i in range(n))


def golden():
    out = HERE / "golden"
    out.mkdir(exist_ok=True)
    kinds = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
    tensors = {}
    for kind in kinds:
        dtype = np.dtype(kind)
        raw = bytes(b & 1 for b in pattern(6)) if kind == "bool" else pattern(6 * dtype.itemsize)
        tensors[f"t.{dtype.name}"] = np.frombuffer(raw, dtype).reshape(2, 3)
    save_file(tensors, out / "numpy-dtypes.safetensors", metadata={"format": "np", "note": "naïve \"quoted\" \\ text"})

    keep, specs = [], {}
    for name in RAW:
        # The package doubles the last dimension of the packed 4-bit type.
        buffer = np.frombuffer(pattern(8 if name == "bfloat16" else 4), np.uint8).copy()
        keep.append(buffer)
        specs[f"raw.{name}"] = TensorSpec(dtype=name, shape=[2, 2], data_ptr=buffer.ctypes.data, data_len=buffer.nbytes)
    serialize_file(specs, str(out / "raw-dtypes.safetensors"))

    odd = {
        "scalar": np.array(7, np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "empty.too": np.zeros((3, 0), np.float64),
        "": np.array([1], np.uint8),
        "ünï/cödé \n": np.arange(5, dtype=np.uint8),
        "deep": np.zeros([1] * 32, np.uint8),
    }
    save_file(odd, out / "odd-shapes.safetensors")
    save_file({}, out / "no-tensors.safetensors")
    many = {f"model.layers.{i}.{part}": np.full((3,), i, np.float16) for i in range(40) for part in ("bias", "weight")}
    save_file(many, out / "many.safetensors", metadata={"format": "pt"})

    # A sharded checkpoint in huggingface_hub's layout, its shards by the real package.
    weight_map, total = {}, 0
    for at in (1, 2):
        name = f"sharded-{at:05}-of-00002.safetensors"
        part = {f"block.{at}.{leaf}": np.full((4, at), at, np.float32) for leaf in ("a", "b")}
        save_file(part, out / name, metadata={"format": "pt"})
        weight_map |= {key: name for key in part}
        total += sum(value.nbytes for value in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "sharded.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def entry(dtype="U8", shape=(1,), offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def head(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def hostile():
    out = HERE / "hostile"
    out.mkdir(exist_ok=True)
    u8 = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    whole = head({"a": entry()}, b"x")
    cases = {
        "empty-file": (b"", "too-short"),
        "seven-bytes": (b"\x02\0\0\0\0\0\0", "too-short"),
        "length-huge": (b"\xff" * 8 + b"{}", "header-length-over-limit"),
        "length-over-limit": (struct.pack("<Q", 100_000_001) + b"{}", "header-length-over-limit"),
        "length-at-limit": (struct.pack("<Q", 100_000_000) + b"{}", "header-length-past-end"),
        "length-past-end": (head({"a": entry()}, b"", 4096), "header-length-past-end"),
        "length-zero": (struct.pack("<Q", 0), "no-brace"),
        "space-first": (head(b" {}"), "no-brace"),
        "array-header": (head(b"[]"), "no-brace"),
        "not-utf8": (head(b'{"\xff\xfe":' + u8 + b"}", b"x"), "not-utf8"),
        "lone-surrogate": (head(b'{"\\ud800":' + u8 + b"}", b"x"), "json"),
        "cut-json": (head(b'{"a":' + u8, b"x"), "json"),
        "two-documents": (head(b'{"a":' + u8 + b"}{}", b"x"), "json"),
        "nul-padding": (head(b'{"a":' + u8 + b"}\0\0", b"x"), "json"),
        "duplicate-tensor": (head(b'{"a":' + u8 + b',"b":' + u8 + b',"a":' + u8 + b"}", b"x"), "duplicate-name"),
        "duplicate-by-escape": (head(b'{"a":' + u8 + b',"\\u0061":' + u8 + b"}", b"x"), "duplicate-name"),
        "duplicate-metadata": (head(b'{"__metadata__":{},"__metadata__":{}}'), "duplicate-name"),
        "duplicate-metadata-key": (head(b'{"__metadata__":{"k":"1","k":"2"}}'), "duplicate-name"),
        "duplicate-field": (
            head(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
            "duplicate-field",
        ),
        "no-dtype": (head(b'{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x"), "missing-field"),
        "no-shape": (head(b'{"a":{"dtype":"U8","data_offsets":[0,1]}}', b"x"), "missing-field"),
        "no-offsets": (head(b'{"a":{"dtype":"U8","shape":[1]}}', b"x"), "missing-field"),
        "entry-array": (head(b'{"a":["U8",[1],[0,1]]}', b"x"), "json"),
        "entry-null": (head(b'{"a":null}'), "json"),
        "dtype-unknown": (head({"a": entry("F128")}, b"x"), "unknown-dtype"),
        "dtype-lower-case": (head({"a": entry("u8")}, b"x"), "unknown-dtype"),
        "dtype-number": (head(b'{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}', b"x"), "json"),
        "shape-negative": (head({"a": entry(shape=[-1])}, b"x"), "json"),
        "shape-float": (head({"a": entry(shape=[1.0])}, b"x"), "json"),
        "shape-string": (head({"a": entry(shape=["1"])}, b"x"), "json"),
        "shape-over-64-bit": (head({"a": entry(shape=[2**64])}, b"x"), "json"),
        "shape-overflow": (head({"a": entry(shape=[2**32, 2**32])}, b"x"), "size-overflow"),
        "bits-overflow": (head({"a": entry("F64", [2**60])}, b"x"), "size-overflow"),
        "rank-65": (head({"a": entry(shape=[1] * 65)}, b"x"), "rank-over-limit"),
        "offsets-one": (head({"a": entry(offsets=[0])}, b"x"), "json"),
        "offsets-three": (head({"a": entry(offsets=[0, 1, 2])}, b"x"), "json"),
        "offsets-negative": (head({"a": entry(offsets=[-1, 0])}, b"x"), "json"),
        "offsets-reversed": (head({"a": entry(shape=[0], offsets=[1, 0])}, b"x"), "reversed-offsets"),
        "offsets-max": (head({"a": entry(offsets=[2**64 - 2, 2**64 - 1])}, b"x"), "hole"),
        "offsets-wrong-length": (head({"a": entry(shape=[2])}, b"x"), "wrong-length"),
        "overlap": (head({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(offsets=[1, 2])}, b"xy"), "overlap"),
        "same-bytes": (head({"a": entry(), "b": entry()}, b"x"), "overlap"),
        "hole-at-start": (head({"a": entry(offsets=[1, 2])}, b"xy"), "hole"),
        "hole-inside": (head({"a": entry(), "b": entry(offsets=[2, 3])}, b"xyz"), "hole"),
        "empty-tensor-inside": (
            head({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[0], offsets=[1, 1])}, b"xy"),
            "overlap",
        ),
        "sub-byte-odd": (head({"a": entry("F4", [3], [0, 2])}, b"xy"), "partial-byte"),
        "six-bit-odd": (head({"a": entry("F6_E2M3", [3], [0, 3])}, b"xyz"), "partial-byte"),
        "data-cut": (whole[:-1], "truncated"),
        "data-huge": (head({"a": entry(shape=[2**40], offsets=[0, 2**40])}, b"x"), "truncated"),
        "data-trailing": (whole + b"\0", "trailing-bytes"),
        "data-without-tensors": (head({}, b"x"), "trailing-bytes"),
        "metadata-number": (head(b'{"__metadata__":{"k":1}}'), "metadata-not-string"),
        "metadata-nested": (head(b'{"__metadata__":{"k":{"a":"b"}}}'), "metadata-not-string"),
        "metadata-null-value": (head(b'{"__metadata__":{"k":null}}'), "metadata-not-string"),
        "metadata-null": (head(b'{"__metadata__":null}'), "json"),
        "metadata-string": (head(b'{"__metadata__":"x"}'), "json"),
        "deep-arrays": (head(b'{"a":' + b"[" * 9000), "json"),
        "deep-unknown-field": (head(b'{"a":{"x":' + b"[" * 9000), "json"),
        "deep-metadata": (head(b'{"__metadata__":{"k":' + b'{"k":' * 2000), "json"),
        "deep-unknown-closed": (
            head(b'{"a":{"x":' + b"[" * 3000 + b"]" * 3000 + b',"dtype":"F0"}}'),
            "unknown-dtype",
        ),
    }
    lines = []
    for name, (content, code) in sorted(cases.items()):
        (out / f"{name}.safetensors").write_bytes(content)
        lines.append(f"{name}.safetensors\t{code}\n")
    (out / "expect.tsv").write_text("".join(lines))


def hostile_index():
    out = HERE / "hostile-index"
    out.mkdir(exist_ok=True)

    def places(file):
        return json.dumps({"weight_map": {"t": file}}).encode()

    cases = {
        "empty": (b"", "index-json"),
        "not-an-object": (b"[]", "index-json"),
        "not-utf8": (b'{"weight_map":{"\xff":"a.safetensors"}}', "index-not-utf8"),
        "cut": (b'{"weight_map":{"t":"a.safetensors"', "index-json"),
        "trailing": (b'{"weight_map":{}}{}', "index-json"),
        "no-map": (b'{"metadata":{"total_size":1}}', "index-no-weight-map"),
        "map-is-array": (b'{"weight_map":[]}', "index-json"),
        "file-is-number": (b'{"weight_map":{"t":1}}', "index-json"),
        "metadata-is-number": (b'{"metadata":1,"weight_map":{}}', "index-json"),
        "two-maps": (b'{"weight_map":{},"weight_map":{}}', "index-duplicate"),
        "two-entries": (b'{"weight_map":{"t":"a.safetensors","t":"a.safetensors"}}', "index-duplicate"),
        "deep": (b'{"x":' + b"[" * 9000, "index-json"),
        "deep-total": (b'{"metadata":{"total_size":' + b"[" * 9000, "index-json"),
        "parent": (places("../a.safetensors"), "index-shard-name"),
        "absolute": (places("/a.safetensors"), "index-shard-name"),
        "folder": (places("x/a.safetensors"), "index-shard-name"),
        "backslash": (places("..\\a.safetensors"), "index-shard-name"),
        "drive": (places("C:a.safetensors"), "index-shard-name"),
        "nul": (places("a\0.safetensors"), "index-shard-name"),
        "dot": (places("."), "index-shard-name"),
        "nothing": (places(""), "index-shard-name"),
        "pickle": (places("pytorch_model.bin"), "index-shard-name"),
        "long": (places("x" * 300 + ".safetensors"), "index-shard-name"),
    }
    lines = []
    for name, (content, code) in sorted(cases.items()):
        (out / f"{name}.index.json").write_bytes(content)
        lines.append(f"{name}.index.json\t{code}\n")
    (out / "expect.tsv").write_text("".join(lines))


if __name__ == "__main__":
    golden()
    hostile()
    hostile_index()
