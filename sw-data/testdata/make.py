"""Writes the files of this folder with other people's software, and beside each what must be found in it.

Needs webdataset, tensorflow (or tensorflow-cpu), torch, megatron-core,
mosaicml-streaming and GNU tar. The files are committed; run this again only to add one:
    python make.py
"""

import io
import json
import os
import subprocess
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


python_tar("python-ustar.tar", tarfile.USTAR_FORMAT)
python_tar("python-gnu.tar", tarfile.GNU_FORMAT)
python_tar("python-pax.tar", tarfile.PAX_FORMAT)
gnu_tar()
webdataset_tar()
tfrecord()
numpy_files()
megatron()
mds()
