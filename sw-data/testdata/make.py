"""Writes the files of this folder with other people's software, and beside each what must be found in it.

Needs numpy and pyarrow, GNU tar, and by part webdataset, tensorflow (or tensorflow-cpu), torch, megatron-core,
mosaicml-streaming; for `sidecars` the files `tools/tfrecord2idx` and `tools/wds2idx.py` of NVIDIA/DALI in the folder that
the environment's DALI_TOOLS names. The files are committed; run this again only to add one, with the names of its parts:
    python make.py [PART…]
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
HERE = os.path.dirname(os.path.abspath(__file__))


def content(number, size):
    """Bytes that differ from file to file and from place to place."""
    return bytes((number * 37 + at * 11 + (at >> 8)) & 0xFF for at in range(size))


def expect(name, what):
    with open(os.path.join(HERE, name + ".json"), "w") as file:
        json.dump(what, file, indent=1)
        file.write("\n")


def members(path):
    """What Python's own reader finds: name, offset and length of each regular file."""
    with tarfile.open(path) as archive:
        found = [m for m in archive.getmembers() if m.isreg()]
        return [{"name": m.name, "offset": m.offset_data, "len": m.size} for m in found]


def python_tar(name, form):
    path = os.path.join(HERE, name)
    with tarfile.open(path, "w", format=form) as archive:
        def add(member, size, kind=tarfile.REGTYPE):
            info = tarfile.TarInfo(member)
            info.type, info.size, info.mtime = kind, size, 1
            if kind == tarfile.SYMTYPE:
                info.linkname = "a.txt"
            archive.addfile(info, io.BytesIO(content(len(member), size)))
        add("a.txt", 0)
        add("dir", 0, tarfile.DIRTYPE)
        add("dir/b.bin", 511)
        add("link", 0, tarfile.SYMTYPE)
        add("dir/c.bin", 512)
        add("d" * 90 + "/" + "e" * 60 + ".bin", 513)
        if form != tarfile.USTAR_FORMAT:
            add("long/" * 50 + "name.bin", 700)
            add("größe/ü.bin", 3)
        add("last", 1)
    expect(name, members(path))


def gnu_tar():
    with tempfile.TemporaryDirectory() as folder:
        names = ["x/one.txt", "x/" + "y" * 120 + ".bin", "x/empty", "x/two.cls"]
        for number, member in enumerate(names):
            path = os.path.join(folder, member)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content(number, number * 333 if "empty" not in member else 0))
        os.link(os.path.join(folder, "x/two.cls"), os.path.join(folder, "x/zz-hard-link"))
        for name, flags in [("gnu.tar", ["--format=gnu"]), ("gnu-pax.tar", ["--format=pax"]), ("v7.tar", ["--format=v7"])]:
            chosen = ["x"] if name != "v7.tar" else ["x/one.txt", "x/empty", "x/two.cls"]
            command = ["tar", "-C", folder, "--sort=name", "--owner=0", "--group=0", "--mtime=@1", "-b1"]
            subprocess.run([*command, *flags, "-cf", os.path.join(HERE, name), *chosen], check=True)
            expect(name, members(os.path.join(HERE, name)))
        sparse = os.path.join(folder, "sparse.bin")
        with open(sparse, "wb") as file:
            file.truncate(1 << 20)
            file.seek(70000)
            file.write(b"data")
        for name, flags in [("sparse-gnu.tar", ["--format=gnu"]), ("sparse-pax.tar", ["--format=pax"])]:
            command = ["tar", "-C", folder, "--owner=0", "--group=0", "--mtime=@1", "-b1", "-S", *flags]
            subprocess.run([*command, "-cf", os.path.join(HERE, name), "sparse.bin"], check=True)


def webdataset_tar():
    import webdataset

    path = os.path.join(HERE, "webdataset.tar")
    with webdataset.TarWriter(path, encoder=False, mtime=1) as sink:
        for number in range(5):
            sink.write({
                "__key__": f"train/{number:05}",
                "jpg": content(number, 200 + number),
                "cls": str(number).encode(),
                "seg.PNG": content(number + 50, 17),
            })
    samples = []
    for sample in webdataset.WebDataset([path], shardshuffle=False):
        fields = {k: v.hex() for k, v in sample.items() if not k.startswith("__")}
        samples.append({"key": sample["__key__"], "fields": fields})
    expect("webdataset.tar", samples)


def tfrecord():
    import tensorflow

    path = os.path.join(HERE, "tensorflow.tfrecord")
    sizes = [0, 1, 4, 100, 1000]
    with tensorflow.io.TFRecordWriter(path) as writer:
        for number, size in enumerate(sizes):
            writer.write(content(number, size))
    found = [record.numpy().hex() for record in tensorflow.data.TFRecordDataset(path)]
    expect("tensorflow.tfrecord", found)


def numpy_files():
    import numpy

    arrays = {
        "f4": numpy.arange(12, dtype="<f4").reshape(3, 4),
        "fortran": numpy.asfortranarray(numpy.arange(6, dtype=">i2").reshape(2, 3)),
        "scalar": numpy.array(7, dtype="u1"),
        "empty": numpy.zeros((0, 5), dtype="c16"),
        "text": numpy.array(["ab", "ü"]),
        "dates": numpy.array(["2026-11-28"], dtype="M8[D]"),
        "bool": numpy.array([True, False]),
        "v2": numpy.zeros(3, dtype="f8"),
    }
    for name, array in arrays.items():
        path = os.path.join(HERE, f"numpy-{name}.npy")
        with open(path, "wb") as file:
            numpy.lib.format.write_array(file, array, version=(2, 0) if name == "v2" else None)
        expect(f"numpy-{name}.npy", {
            "descr": array.dtype.str, "item_len": array.dtype.itemsize, "shape": list(array.shape),
            "fortran": array.flags.f_contiguous and not array.flags.c_contiguous,
            "offset": os.path.getsize(path) - array.nbytes, "len": array.nbytes,
        })
    structure = numpy.zeros(2, dtype=[("a", "<i4"), ("b", "<f8", (2,))])
    numpy.save(os.path.join(HERE, "numpy-structure.npy"), structure)
    numpy.save(os.path.join(HERE, "numpy-objects.npy"), numpy.array([{}], dtype=object), allow_pickle=True)


def megatron():
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    for name, dtype in [("u16", numpy.uint16), ("i32", numpy.int32)]:
        prefix = os.path.join(HERE, f"megatron-{name}")
        builder = IndexedDatasetBuilder(prefix + ".bin", dtype=dtype)
        for number, size in enumerate([5, 1, 300, 0, 17]):
            builder.add_item(torch.arange(number, number + size))
            if number in (1, 4):
                builder.end_document()
        builder.finalize(prefix + ".idx")
        dataset = IndexedDataset(prefix)
        expect(f"megatron-{name}", {
            "sequences": [dataset[at].tolist() for at in range(len(dataset))],
            "documents": dataset.document_indices.tolist(),
        })


def mds():
    import shutil

    import numpy
    from streaming import MDSWriter, StreamingDataset

    columns = {"image": "bytes", "label": "int", "name": "str", "box": "ndarray:float32:2"}
    for name, options in [("mds", {"size_limit": 1500}), ("mds-zstd", {"size_limit": 1500, "compression": "zstd"})]:
        folder = os.path.join(HERE, name)
        shutil.rmtree(folder, ignore_errors=True)
        with MDSWriter(out=folder, columns=columns, hashes=["xxh64"], **options) as writer:
            for number in range(7):
                box = numpy.array([number, number / 2], dtype="float32")
                size = 100 * number
                writer.write({"image": content(number, size), "label": number, "name": "n" * number, "box": box})
    dataset = StreamingDataset(local=os.path.join(HERE, "mds"), shuffle=False, batch_size=1)
    expect("mds", [
        {"image": s["image"].hex(), "label": s["label"], "name": s["name"], "box": s["box"].tobytes().hex()}
        for s in (dataset[at] for at in range(7))
    ])


def examples():
    """Records as DLIO and tensorflow's own guides write them: one by one, and in a compressed and a plain file."""
    import tensorflow

    train = tensorflow.train
    records = []
    for number in range(4):
        features = {
            "image": train.Feature(bytes_list=train.BytesList(value=[content(number, 90 * number)])),
            "size": train.Feature(int64_list=train.Int64List(value=[90 * number, -1])),
            "box": train.Feature(float_list=train.FloatList(value=[0.5, number, -2.0])),
            "names": train.Feature(bytes_list=train.BytesList(value=["ü".encode(), b"", b"x" * number])),
            "empty": train.Feature(),
        }
        records.append(train.Example(features=train.Features(feature=features)).SerializeToString(deterministic=True))
    with open(os.path.join(HERE, "tensorflow.example"), "wb") as file:
        file.write(records[2])
    for name, options in [("example.tfrecord", None), ("gzip.tfrecord", "GZIP"), ("zlib.tfrecord", "ZLIB")]:
        with tensorflow.io.TFRecordWriter(os.path.join(HERE, name), options) as writer:
            for record in records:
                writer.write(record)
    found = []
    for record in tensorflow.data.TFRecordDataset(os.path.join(HERE, "example.tfrecord")):
        features = train.Example.FromString(record.numpy()).features.feature
        kinds = {"bytes_list": lambda v: v.hex(), "int64_list": int, "float_list": float}
        read = {}
        for name, feature in features.items():
            kind = feature.WhichOneof("kind")
            read[name] = [kinds[kind](value) for value in getattr(feature, kind).value] if kind else None
        found.append(read)
    expect("example.tfrecord", found)


def npz():
    import numpy

    arrays = {
        "image": numpy.arange(300, dtype="u1").reshape(10, 30), "größe": numpy.float32(1.5),
        "fortran": numpy.asfortranarray(numpy.arange(6, dtype=">i2").reshape(2, 3)), "empty": numpy.zeros((0, 3)),
    }
    for name, save in [("stored.npz", numpy.savez), ("deflated.npz", numpy.savez_compressed)]:
        path = os.path.join(HERE, name)
        save(path, **arrays)
        with numpy.load(path) as archive:
            expect(name, {
                key: {"descr": array.dtype.str, "shape": list(array.shape), "hex": array.tobytes(order="A").hex()}
                for key, array in archive.items()
            })
    # An array of objects among others.
    numpy.savez(os.path.join(HERE, "objects.npz"), good=arrays["image"], bad=numpy.array([{}], dtype=object))


def parquet():
    """Every codec, encoding, page version and shape of rows; with the value of each row, or its SHA-256 if there are many."""
    import hashlib

    import numpy
    import pyarrow
    import pyarrow.parquet as parquet

    folder = os.path.join(HERE, "parquet")
    os.makedirs(folder, exist_ok=True)

    def flat(value):
        """A row as bytes: values end to end."""
        if value is None:
            return b""
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return b"".join(flat(item) for item in value)
        raise TypeError(value)

    def make(name, table, column, rows=None, **options):
        path = os.path.join(folder, name + ".parquet")
        parquet.write_table(table, path, **options)
        if rows is None:
            # What pyarrow reads back, not what was written.
            read = parquet.read_table(path, columns=[column.split(".")[0]]).column(0).to_pylist()
            for part in column.split(".")[1:]:
                read = [row and row[part] if part not in ("list", "element") else row for row in read]
            rows = [flat(row) for row in read]
        whole = hashlib.sha256()
        for row in rows:
            whole.update(len(row).to_bytes(8, "little") + row)
        meta = parquet.read_metadata(path)
        expect("parquet/" + name + ".parquet", {
            "column": column, "rows": len(rows), "sha256": whole.hexdigest(), "groups": meta.num_row_groups,
        })

    def blobs(count, missing=0):
        return [None if missing and at % missing == 0 else content(at, at * 7 % 90) for at in range(count)]

    def binary(values):
        return pyarrow.table({"label": pyarrow.array(range(len(values)), pyarrow.int32()), "image": pyarrow.array(values, pyarrow.binary())})

    plain = {"compression": "none", "use_dictionary": False}
    for version in ["1.0", "2.0"]:
        v = {"data_page_version": version}
        short = "v" + version[0]
        make(f"plain-{short}", binary(blobs(60)), "image", **plain, **v)
        make(f"nulls-{short}", binary(blobs(60, missing=7)), "image", row_group_size=25, **plain, **v)
        make(f"required-{short}", binary(blobs(40)).cast(pyarrow.schema([
            pyarrow.field("label", pyarrow.int32(), nullable=False), pyarrow.field("image", pyarrow.binary(), nullable=False),
        ])), "image", data_page_size=300, write_page_checksum=True, **plain, **v)
        make(f"dictionary-{short}", binary([content(at % 3, 20) for at in range(50)]), "image", compression="none", **v)
        make(f"fallback-{short}", binary(blobs(80)), "image", compression="none", dictionary_pagesize_limit=200, data_page_size=400, write_batch_size=8, **v)
        for codec in ["snappy", "gzip", "zstd", "lz4"]:
            make(f"{codec}-{short}", binary(blobs(40, missing=9)), "image", compression=codec, use_dictionary=False, data_page_size=500, write_batch_size=8, **v)
        lists = pyarrow.table({"tokens": pyarrow.array([None if at == 3 else [content(at, at), None, b"x"][: at % 4] for at in range(30)], pyarrow.list_(pyarrow.binary()))})
        make(f"lists-{short}", lists, "tokens.list.element", compression="snappy", data_page_size=100, write_batch_size=4, **v)
    make("checksum", binary(blobs(40)), "image", compression="zstd", use_dictionary=False, write_page_checksum=True)
    structs = pyarrow.array([None if at == 2 else {"bytes": None if at == 4 else content(at, at), "path": f"{at}.jpg"} for at in range(9)])
    make("struct", pyarrow.table({"image": structs}), "image.bytes", **plain)
    fixed = pyarrow.array([content(at, 12) for at in range(33)], pyarrow.binary(12))
    make("fixed", pyarrow.table({"key": fixed}), "key", **plain)
    make("fixed-nulls", pyarrow.table({"key": pyarrow.array([None if at % 5 == 1 else content(at, 12) for at in range(33)], pyarrow.binary(12))}), "key", **plain)
    text = pyarrow.table({"text": ["größe " * (at % 5) for at in range(40)]})
    make("text", text, "text", compression="snappy")
    for encoding in ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]:
        make(encoding.lower(), text, "text", compression="zstd", use_dictionary=False, column_encoding={"text": encoding})
    numbers = numpy.arange(500, dtype="<i8") ** 2 % 1009
    for name, array, options in [
        ("int64", numbers, plain), ("int32", numbers.astype("<i4"), plain), ("double", numbers.astype("<f8"), plain),
        ("delta", numbers, {**plain, "column_encoding": {"n": "DELTA_BINARY_PACKED"}}),
        ("split", numbers.astype("<f4"), {**plain, "column_encoding": {"n": "BYTE_STREAM_SPLIT"}}),
        ("float-zstd", numbers.astype("<f4"), {"compression": "zstd"}),
    ]:
        rows = [item.tobytes() for item in array]
        make(name, pyarrow.table({"n": array}), "n", rows=rows, **options)
    bits = [at % 3 == 0 for at in range(77)]
    make("boolean", pyarrow.table({"b": bits}), "b", rows=[bytes([bit]) for bit in bits], **plain)
    make("empty", binary([]), "image")
    # Row groups without rows among others.
    with parquet.ParquetWriter(os.path.join(folder, "empty-groups.parquet"), binary([]).schema, **plain) as writer:
        for count in [0, 3, 0, 4]:
            writer.write_table(binary(blobs(count)), row_group_size=4)
    rows = [flat(row) for count in [3, 4] for row in blobs(count)]
    whole = hashlib.sha256()
    for row in rows:
        whole.update(len(row).to_bytes(8, "little") + row)
    expect("parquet/empty-groups.parquet", {"column": "image", "rows": 7, "sha256": whole.hexdigest(), "groups": None})
    # 10⁵ rows in few bytes: a dictionary.
    make("many", pyarrow.table({"id": pyarrow.array([b"%d" % (at % 50) for at in range(100_000)])}), "id", compression="zstd", row_group_size=30_000)
    # A value that is longer than what is read at once.
    make("long", binary([content(1, 70_000), b"", content(2, 40_000), b"end"]), "image", compression="none", use_dictionary=False)
    make("brotli", binary(blobs(3)), "image", compression="brotli")
    two = pyarrow.table({"a": [b"x"], "b": [b"y"], "c": ["z"]})
    make("two", two, "b", **plain)


def sidecars():
    tools = os.environ["DALI_TOOLS"]
    for tool, shard in [("tfrecord2idx", "tensorflow.tfrecord"), ("wds2idx.py", "webdataset.tar")]:
        command = [sys.executable, os.path.join(tools, tool), shard, shard + ".sidecar"]
        subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)


def python_tars():
    python_tar("python-ustar.tar", tarfile.USTAR_FORMAT)
    python_tar("python-gnu.tar", tarfile.GNU_FORMAT)
    python_tar("python-pax.tar", tarfile.PAX_FORMAT)


PARTS = [python_tars, gnu_tar, webdataset_tar, tfrecord, examples, sidecars, numpy_files, npz, parquet, megatron, mds]
for part in PARTS:
    if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
        part()
