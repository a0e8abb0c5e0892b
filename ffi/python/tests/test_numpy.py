"""numpy: sharing, types, lifetimes, files of the original both ways."""

from __future__ import annotations

import functools
import gc
import sys
from pathlib import Path

import pytest

import straightway

np = pytest.importorskip("numpy")
pytest.importorskip("safetensors")
import safetensors.numpy  # noqa: E402

import straightway.numpy  # noqa: E402

DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]


def tensors_of_every_kind() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    tensors = {f"t.{dtype}": random.integers(0, 2, (3, 5, 7)).astype(dtype) for dtype in DTYPES}
    tensors["scalar"] = np.array(2.5, dtype="f4")
    tensors["empty"] = np.zeros((0, 4), dtype="f4")
    tensors["one"] = random.standard_normal(1)
    tensors["odd , * ? \\ ä \n name"] = random.standard_normal((100, 3)).astype("f4")
    tensors["large"] = random.standard_normal((700, 999)).astype("f4")
    return tensors


def same(left, right) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_files_of_the_original_are_read(tmp_path: Path):
    tensors = tensors_of_every_kind()
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata={"who": "they"})
    for loaded in [
        straightway.numpy.load_file(tmp_path / "a.safetensors"),
        straightway.load_file(tmp_path / "a.safetensors", framework="numpy"),
        straightway.load(tmp_path, framework="numpy"),
    ]:
        assert set(loaded) == set(tensors)
        assert all(same(loaded[name], tensors[name]) for name in tensors)
        assert all(array.flags.writeable for array in loaded.values())


def test_our_files_are_read_by_the_original(tmp_path: Path):
    tensors = tensors_of_every_kind()
    straightway.numpy.save_file(tensors, tmp_path / "b.safetensors", metadata={"who": "we"})
    loaded = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert set(loaded) == set(tensors) and all(same(loaded[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "b.safetensors", "numpy") as file:
        assert file.metadata() == {"who": "we"}


def test_sharded_checkpoints_come_back(tmp_path: Path):
    tensors = tensors_of_every_kind()
    files = straightway.save(tensors, tmp_path, shard_bytes=100_000)
    assert len(files) > 3 and files[-2:] == ["model.safetensors.index.json", "straightway.checksums.json"]
    loaded = straightway.load(tmp_path, framework="numpy")
    assert set(loaded) == set(tensors) and all(same(loaded[name], tensors[name]) for name in tensors)


def test_a_choice_of_tensors_reads_no_others(tmp_path: Path):
    tensors = {f"layer.{n}.w": np.full((1 << 18,), n, dtype="f4") for n in range(8)}
    straightway.save_file(tensors, tmp_path / "m.safetensors")
    some = straightway.load_file(tmp_path / "m.safetensors", tensors="layer.[3].w".replace("[3]", "3"), framework="numpy")
    assert list(some) == ["layer.3.w"] and (some["layer.3.w"] == 3).all()
    assert sum(way.bytes for file in some.report.files for way in file.ways) <= (1 << 20) + 8192
    two = straightway.load_file(tmp_path / "m.safetensors", tensors=["layer.7.w", "layer.0.w"])
    assert sorted(two) == ["layer.0.w", "layer.7.w"]
    with pytest.raises(straightway.NotFound):
        straightway.load_file(tmp_path / "m.safetensors", tensors=["layer.9.w"])


def test_arrays_share_the_memory_of_their_buffer(tmp_path: Path):
    straightway.save_file({"w": np.arange(12, dtype="f4").reshape(3, 4)}, tmp_path / "m.safetensors")
    buffer = straightway.load_file(tmp_path / "m.safetensors")["w"]
    assert (buffer.dtype, buffer.shape, buffer.nbytes, buffer.itemsize, len(buffer)) == ("F32", (3, 4), 48, 4, 3)
    by_buffer, by_dlpack = np.asarray(buffer), np.from_dlpack(buffer)
    by_buffer[1, 2] = 99
    assert by_dlpack[1, 2] == 99 and by_dlpack.shape == (3, 4) and by_dlpack.flags.writeable
    assert memoryview(buffer)[1, 2] == 99.0
    assert not hasattr(buffer, "__cuda_array_interface__")


def test_memory_stays_under_every_view_of_it(tmp_path: Path):
    expected = np.random.default_rng(1).standard_normal((1000, 100))
    straightway.save_file({"w": expected, "x": expected}, tmp_path / "m.safetensors")
    views = []
    for make in [np.asarray, np.from_dlpack, memoryview, lambda b: np.asarray(b)[10:20], lambda b: np.from_dlpack(b).T]:
        views.append(make(straightway.load_file(tmp_path / "m.safetensors")["w"]))
    gc.collect()
    # Memory that was given back would be taken for these.
    noise = [straightway.engine().allocate(1 << 20) for _ in range(64)]
    for buffer in noise:
        np.asarray(buffer)[:] = 255
    whole, packed, view, part, turned = views
    assert (whole == expected).all() and (packed == expected).all() and (part == expected[10:20]).all()
    assert (turned == expected.T).all() and view[5, 6] == expected[5, 6]


def test_memory_goes_when_the_last_view_goes():
    def resident() -> int:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) << 10
        raise AssertionError

    engine = straightway.engine()
    before = resident()
    for _ in range(64):
        buffer = engine.allocate(16 << 20)
        array = np.asarray(buffer)
        array[:] = 1
        capsule = buffer.__dlpack__()
        other = np.from_dlpack(buffer)
        del buffer, array, capsule, other
    gc.collect()
    assert resident() - before < 64 << 20


def test_reads_into_arrays_of_every_shape(data):
    path, content = data
    file = straightway.open(path)
    array = np.zeros((10, 100, 3), dtype="i4")
    file.read_into(array, 24)
    assert array.tobytes() == content[24 : 24 + array.nbytes]
    assert file.read_into(np.zeros((0, 3))) is None
    with pytest.raises(straightway.ApiMisuse):
        file.read_into(array[:, ::2])
    with pytest.raises(straightway.ApiMisuse):
        file.read_into(np.asfortranarray(np.zeros((4, 4))))
    array.flags.writeable = False
    with pytest.raises(straightway.ApiMisuse):
        file.read_into(array)


def test_an_array_outlives_its_name_while_a_read_is_in_flight(data):
    path, content = data
    file = straightway.open(path)
    operations = []
    for _ in range(50):
        array = np.zeros(1 << 20, dtype="u1")
        operations.append((file.start_read_into(array, 17), array[5:9]))
        del array
    gc.collect()
    for operation, part in operations:
        assert operation.wait().bytes == 1 << 20
        assert part.tobytes() == content[22:26]


def test_views_of_types_that_numpy_lacks(tmp_path: Path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(64).astype(ml_dtypes.bfloat16)
    straightway.numpy.save_file({"w": values, "e": values.astype(ml_dtypes.float8_e4m3fn)}, tmp_path / "m.safetensors")
    buffer = straightway.load_file(tmp_path / "m.safetensors")["w"]
    with pytest.raises(BufferError):
        memoryview(buffer)
    assert memoryview(buffer.view()).nbytes == 128
    loaded = straightway.numpy.load_file(tmp_path / "m.safetensors")
    assert loaded["w"].dtype == ml_dtypes.bfloat16 and (loaded["w"] == values).all()


def test_views_stay_inside():
    buffer = straightway.engine().allocate(64)
    assert buffer.view("F32").shape == (16,) and buffer.view("I64", [2, 2], 32).shape == (2, 2)
    for wrong in [("F32", [17], 0), ("F32", [1], 61), ("F32", [1 << 62, 1 << 62], 0), ("X", None, 0), ("U8", [1], 1 << 63)]:
        with pytest.raises(straightway.ApiMisuse):
            buffer.view(*wrong)


def test_slices_are_those_of_the_original(tmp_path: Path):
    tensors = {"a": np.arange(24 * 7, dtype="f4").reshape(4, 6, 7), "s": np.array(3.0), "e": np.zeros((0, 3))}
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(tensors, path)
    indexes = [0, -1, 3, slice(None), slice(1, 3), slice(-2, None), slice(2, 2), slice(3, 1), slice(0, 100)]
    indexes += [(1, 2), (slice(1, 3), 4), (slice(None), slice(2, 4)), (0, 1, 2), (Ellipsis, 2), (slice(1, 2), Ellipsis)]
    indexes += [(slice(1, 3), slice(0, 2), slice(3, 5))]
    with straightway.safe_open(path, "numpy") as ours, safetensors.safe_open(path, "numpy") as theirs:
        assert ours.keys() == list(theirs.keys()) and ours.offset_keys() == theirs.offset_keys()
        assert ours.metadata() == theirs.metadata()
        assert ours.get_slice("a").get_shape() == theirs.get_slice("a").get_shape()
        assert ours.get_slice("a").get_dtype() == theirs.get_slice("a").get_dtype()
        for index in indexes:
            assert (ours.get_slice("a")[index] == tensors["a"][index]).all(), index
            assert ours.get_slice("a")[index].shape == tensors["a"][index].shape, index
        for name in tensors:
            assert same(ours.get_tensor(name), tensors[name])
        assert set(ours.get_tensors()) == set(tensors)
        with pytest.raises(IndexError):
            ours.get_slice("a")[4]


def test_ten_thousand_tensors(tmp_path: Path):
    tensors = {f"block.{n}.weight": np.full((n % 17 + 1, 3), n, dtype="f4") for n in range(10_000)}
    straightway.save_file(tensors, tmp_path / "m.safetensors")
    loaded = straightway.load_file(tmp_path / "m.safetensors", framework="numpy")
    assert len(loaded) == 10_000
    assert all((loaded[name] == array).all() for name, array in tensors.items())
    assert len(safetensors.numpy.load_file(tmp_path / "m.safetensors")) == 10_000


def test_an_old_file_with_odd_offsets_is_aligned_and_says_so(tmp_path: Path):
    import json

    head = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                       "b": {"dtype": "F64", "shape": [4], "data_offsets": [3, 35]}}).encode()
    values = np.arange(4, dtype="f8")
    (tmp_path / "m.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"abc" + values.tobytes())
    loaded = straightway.load_file(tmp_path / "m.safetensors", framework="numpy")
    assert (loaded["b"] == values).all() and loaded["b"].flags.aligned and bytes(loaded["a"]) == b"abc"
    assert loaded.report.realigned_bytes == 32


def test_import_brings_neither_numpy_nor_torch(script):
    script("import sys, straightway; assert not {'numpy', 'torch'} & set(sys.modules), sys.modules.keys()")


def test_sizes_of_objects_do_not_grow_references():
    buffer = straightway.engine().allocate(4096)
    before = sys.getrefcount(buffer)
    for _ in range(1000):
        np.asarray(buffer)
        np.from_dlpack(buffer)
        buffer.__dlpack__()
        memoryview(buffer).release()
    gc.collect()
    assert sys.getrefcount(buffer) == before


def test_a_list_of_names_may_have_any_names_and_any_length(tmp_path):
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(10_000)] + ["", " ", "a,b*?\\"]
    saved = {name: np.full(1, n % 251, np.uint8) for n, name in enumerate(names)}
    straightway.save_file(saved, tmp_path / "many.safetensors")
    load = functools.partial(straightway.load, tmp_path / "many.safetensors", framework="numpy")
    loaded = load(tensors=[*reversed(names), ""])
    assert loaded.keys() == saved.keys() and all(loaded[name] == value for name, value in saved.items())
    assert load(tensors=[]) == {} and list(load(tensors=["", "a,b*?\\"])) == ["", "a,b*?\\"]
    with pytest.raises(straightway.NotFound, match="nobody"):
        load(tensors=["", "nobody"])
