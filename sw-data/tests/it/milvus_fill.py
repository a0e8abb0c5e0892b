"""Fills a Milvus, and says what is to come out of it: FOLDER/COLLECTION-FIELD.rows, of each row the length and text of its key, the length and
bytes of its value (lengths u32, little-endian)."""

import struct
import sys

import numpy as np
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema, connections, db, utility

folder, what = sys.argv[1:3]
connections.connect(host="127.0.0.1", port="19530")
random = np.random.default_rng(7)


def tell(name, rows):
    with open(f"{folder}/{name}.rows", "wb") as file:
        for key, value in rows.items():
            key = str(key).encode()
            file.write(struct.pack("<I", len(key)) + key + struct.pack("<I", len(value)) + value)


def segments(name):
    return [(s.segmentID, s.partitionID, s.num_rows, s.state) for s in connections._fetch_handler("default").get_persistent_segment_infos(name)]


def demo():
    fields = [
        FieldSchema("id", DataType.INT64, is_primary=True),
        FieldSchema("vector", DataType.FLOAT_VECTOR, dim=128),
        FieldSchema("name", DataType.VARCHAR, max_length=64),
        FieldSchema("number", DataType.INT32),
    ]
    made = Collection("demo", CollectionSchema(fields), num_shards=1)
    made.create_partition("second")
    matrix = random.standard_normal((6000, 128), dtype=np.float32)
    # As real ones, of which pages are smaller than their values, and repeated, of which there is a dictionary.
    matrix[4000:5000] = np.round(matrix[4000:5000])
    matrix[5000:] = matrix[5000]
    rows = {}

    def put(how, keys, values, partition):
        columns = [keys, list(values), [f"row {key}" for key in keys], [key % 7 for key in keys]]
        getattr(made, how)(columns, partition_name=partition)
        rows.update({key: (value, key) for key, value in zip(keys, values)})

    put("insert", list(range(0, 3500)), matrix[:3500], "_default")
    put("insert", list(range(3500, 6000)), matrix[3500:], "second")
    made.flush()
    for keys, partition in [([1, 2, 3, 1500], "_default"), ([3600, 5999], "second")]:
        made.delete(f"id in {keys}", partition_name=partition)
        for key in keys:
            del rows[key]
    # Of another partition: nothing is deleted.
    made.delete("id in [3601]", partition_name="_default")
    put("upsert", [10, 11], matrix[10:12] * 2, "_default")
    put("upsert", [11], matrix[11:12] * 3, "_default")
    # Deleted, and there again.
    put("insert", [2], matrix[2:3] * 5, "_default")
    made.flush()
    tell("demo-vector", {key: value.tobytes() for key, (value, _) in rows.items()})
    tell("demo-name", {key: f"row {key}".encode() for key in rows})
    tell("demo-number", {key: struct.pack("<i", key % 7) for key in rows})
    # Not flushed.
    made.insert([[90000], matrix[:1], ["no"], [1]])
    print("demo", len(rows), segments("demo"))


def texts():
    fields = [
        FieldSchema("key", DataType.VARCHAR, max_length=32, is_primary=True),
        FieldSchema("bits", DataType.BINARY_VECTOR, dim=64),
        FieldSchema("double", DataType.DOUBLE),
        FieldSchema("is", DataType.BOOL),
    ]
    made = Collection("texts", CollectionSchema(fields), num_shards=2)
    keys = [f"kéy-{number}" for number in range(500)]
    bits = [random.bytes(8) for _ in keys]
    made.insert([keys, bits, [number / 3 for number in range(500)], [number % 3 == 0 for number in range(500)]])
    made.delete('key in ["kéy-7", "kéy-499"]')
    made.flush()
    left = {key: number for number, key in enumerate(keys) if number not in (7, 499)}
    tell("texts-bits", {key: bits[number] for key, number in left.items()})
    tell("texts-double", {key: struct.pack("<d", number / 3) for key, number in left.items()})
    tell("texts-is", {key: bytes([number % 3 == 0]) for key, number in left.items()})
    print("texts", len(left), segments("texts"))


def other():
    db.create_database("other")
    db.using_database("other")
    fields = [FieldSchema("id", DataType.INT64, is_primary=True), FieldSchema("v", DataType.FLOAT_VECTOR, dim=2)]
    made = Collection("third", CollectionSchema(fields))
    made.insert([[1], np.zeros((1, 2), dtype=np.float32)])


def fill():
    demo()
    texts()
    other()


def drop():
    utility.drop_collection("texts")


{"fill": fill, "drop": drop}[what]()
