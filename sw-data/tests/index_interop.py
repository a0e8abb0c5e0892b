"""The other side of index_interop.rs: reads with the libraries that people have, and answers in JSON."""

import json
import sys


def index(path):
    import pyarrow as pa

    with pa.ipc.open_file(path) as file:
        table = file.read_all()
    table.validate(full=True)
    rows = []
    samples = table["object"].chunk(0).dictionary.field("samples").to_pylist()
    for row in table.to_pylist():
        place = row.pop("object")
        row["uri"] = place["uri"]
        row["object_length"] = place["length"]
        row["version"] = place["version"]
        row["format"] = place["format"]
        rows.append(row)
    return {"version": pa.__version__, "rows": rows, "samples": samples}


def webdataset(*shards):
    import webdataset as wds

    dataset = wds.WebDataset(list(shards), shardshuffle=False)
    samples = [
        {"key": sample["__key__"], "txt": len(sample["txt"]), "cls": sample["cls"].decode()} for sample in dataset
    ]
    return {"version": getattr(wds, "__version__", "?"), "samples": samples}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
