"""Writes the samples of a dataset again as MDS or Parquet shards, by the libraries that people write them with.

    prepare_samples.py mds|parquet SHARD_BYTES LIST OUT_DIR

LIST is a JSON file as `samples.py` reads it. Samples become values of one column of bytes, `sample`, as they are: MDS shards without
compression, and Parquet without dictionary and compression, as data is kept that is compressed already, in row groups of 8 MiB. OUT_DIR
must not exist; it is made when everything is written.
"""

import json
import sys
from pathlib import Path

GROUP_BYTES = 8 << 20


def samples_of(data):
    opened = {}
    for file, offset, length in data["places"]:
        if file not in opened:
            opened[file] = open(data["files"][file], "rb")
        opened[file].seek(offset)
        yield opened[file].read(length)


def write_mds(folder, data, shard_bytes):
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"sample": "bytes"}, compression=None, size_limit=shard_bytes) as out:
        for sample in samples_of(data):
            out.write({"sample": sample})


def write_parquet(folder, data, shard_bytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field("sample", pa.binary(), nullable=False)])
    writer, shards, written, group, held = None, 0, 0, [], 0

    def flush():
        nonlocal group, held
        if group:
            table = pa.Table.from_arrays([pa.array(group, pa.binary())], schema=schema)
            writer.write_table(table, row_group_size=len(group))
        group, held = [], 0

    for sample in samples_of(data):
        if writer is None or written >= shard_bytes:
            if writer is not None:
                flush()
                writer.close()
            path = folder / f"shard-{shards:05}.parquet"
            writer = pq.ParquetWriter(path, schema, use_dictionary=False, compression="none")
            shards, written = shards + 1, 0
        group.append(sample)
        held += len(sample)
        written += len(sample)
        if held >= GROUP_BYTES:
            flush()
    flush()
    writer.close()


def main():
    kind, shard_bytes, path, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    with open(path) as file:
        data = json.load(file)
    partial = out.with_name(out.name + ".partial")
    if kind == "parquet":
        partial.mkdir(parents=True)
        write_parquet(partial, data, shard_bytes)
    else:
        write_mds(partial, data, shard_bytes)
    partial.rename(out)


if __name__ == "__main__":
    main()
