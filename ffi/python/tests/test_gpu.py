"""Memory of a GPU from Python, on the project's stand-in driver: a process of its own for each test. It proves the logic, no device.

`cargo xtask python` builds the driver and says where it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_loader import write_tars

DRIVER = os.environ.get("STRAIGHTWAY_STANDIN_DRIVER")
pytestmark = pytest.mark.skipif(not DRIVER, reason="no stand-in driver was given; run cargo xtask python")


@pytest.fixture
def gpu(tmp_path: Path, script):
    """Runs a program that sees two stand-in GPUs."""
    folder = tmp_path / "driver"
    folder.mkdir()
    for name in ("libcuda.so.1", "libcuda.so"):
        (folder / name).symlink_to(DRIVER)

    def run(text: str, *args: object):
        head = "import sys, straightway\n"
        return script(head + text, *args, environment={"LD_LIBRARY_PATH": str(folder), "STANDIN_DEVICES": "2"})

    return run


def test_a_read_lands_in_a_gpu_and_tells_its_way(data, gpu):
    path, _ = data
    gpu(
        r"""
content = open(sys.argv[1], "rb").read()
engine = straightway.Engine.shared()
with straightway.open(sys.argv[1]) as file:
    buffer = file.read(777, 1 << 20, into="gpu1")
assert buffer.device == "gpu1" and buffer.path.staged == 1 << 20 and buffer.path.landing == "staged", buffer.path
assert bytes(engine.to_host(buffer)) == content[777 : 777 + (1 << 20)]
told = buffer.__cuda_array_interface__
assert told["version"] == 3 and told["shape"] == (1 << 20,) and told["typestr"] == "|u1" and told["data"][0], told
assert buffer.__dlpack_device__() == (2, 1)
assert not hasattr(straightway.Engine.shared().allocate(10), "__cuda_array_interface__")
try:
    memoryview(buffer)
except (BufferError, TypeError) as error:
    assert "DLPack" in str(error), error
else:
    raise SystemExit("memory of a GPU has the buffer protocol")
""",
        path,
    )


def test_memory_of_another_library_is_read_into_and_written_from(data, gpu, tmp_path):
    path, _ = data
    gpu(
        r"""
content = open(sys.argv[1], "rb").read()
engine = straightway.Engine.shared()
memory = engine.allocate(1 << 20, "gpu0")
class Array:  # What cupy and numba show of their arrays.
    __cuda_array_interface__ = memory.__cuda_array_interface__
    def __dlpack_device__(self): return (2, 0)
array = Array()
with straightway.open(sys.argv[1]) as file:
    way = file.read_into(array, 4096)
assert way.staged == 1 << 20, way
assert bytes(engine.to_host(memory)) == content[4096 : 4096 + (1 << 20)]
with engine.create(sys.argv[2], 1 << 20) as new:
    (way,) = new.write([(0, array)])
    assert way.staged == 1 << 20, way
    new.commit()
assert open(sys.argv[2], "rb").read() == content[4096 : 4096 + (1 << 20)]
""",
        path,
        tmp_path / "written",
    )


def test_a_checkpoint_comes_from_and_goes_to_a_gpu(gpu, tmp_path):
    pytest.importorskip("numpy")
    gpu(
        r"""
import numpy
tensors = {f"w.{n}": numpy.random.default_rng(n).random((33, 1 + 70 * n), dtype="float32") for n in range(20)}
straightway.save(tensors, sys.argv[1], shard_bytes=64 << 10)
engine = straightway.Engine.shared()
loaded = straightway.load(sys.argv[1], device="cuda")
assert {buffer.device for buffer in loaded.values()} == {"gpu0"}
assert all(bytes(engine.to_host(loaded[name])) == tensor.tobytes() for name, tensor in tensors.items())
straightway.save(loaded, sys.argv[2])
again = straightway.load(sys.argv[2], framework="numpy")
assert all((again[name] == tensor).all() for name, tensor in tensors.items())
""",
        tmp_path / "from",
        tmp_path / "to",
    )


def test_several_threads_copy_out_of_gpus(gpu, tmp_path):
    gpu(
        r"""
engine = straightway.Engine.shared()
contents = [bytes([n + 1]) * length for n, length in enumerate([1, 4097, (9 << 20) + 5, 3 << 20, 2 << 20])]
class Array:
    def __init__(self, content, into):
        self.memory = engine.allocate(len(content), into)
        with engine.create(sys.argv[1], len(content)) as new:
            new.write([(0, content)])
            new.commit()
        with straightway.open(sys.argv[1]) as file:
            file.read_into(self.memory)
        self.__cuda_array_interface__ = self.memory.__cuda_array_interface__
        self.number = int(into[-1])
    def __dlpack_device__(self): return (2, self.number)
import os
sources = []
for number, content in enumerate(contents):
    sources.append(Array(content, f"gpu{number % 2}"))
    os.unlink(sys.argv[1])
targets = [bytearray(len(content)) for content in contents] + [bytearray(3)]
assert engine.copy_many(list(zip([*sources, b"abc"], targets))) == sum(map(len, targets))
assert [bytes(target) for target in targets] == [*contents, b"abc"]
wrong = [((b"abc", Array(b"def", "gpu0")), "target is memory of a device"), ((sources[0], bytearray(2)), "1 bytes, the target 2")]
for pair, text in wrong:
    try:
        engine.copy_many([pair])
    except straightway.ApiMisuse as error:
        assert text in str(error), error
    else:
        raise SystemExit(text)
    if os.path.exists(sys.argv[1]): os.unlink(sys.argv[1])
""",
        tmp_path / "content",
    )


def test_a_state_in_a_gpu_is_staged_by_the_engine(gpu, tmp_path):
    """No torch here has a GPU: tensors that say they are in one, and whose bytes are in the stand-in's."""
    pytest.importorskip("torch")
    gpu(
        r"""
import warnings; warnings.simplefilter("ignore")
import torch, torch.distributed.checkpoint as dcp
from straightway.torch import _stage
from straightway.torch.checkpoint import StorageReader, StorageWriter
engine = straightway.Engine.shared()
class Far(torch.Tensor):
    is_cuda, is_cpu = True, False
class Array:
    def __init__(self, memory): self.memory, self.__cuda_array_interface__ = memory, memory.__cuda_array_interface__
    def __dlpack_device__(self): return (2, 1)
original = {f"w{n}": torch.randn(1 + n * 400_000) for n in range(4)}
straightway.save(original, sys.argv[1])
far = straightway.load(sys.argv[1], device="gpu1")
there = {name: tensor.as_subclass(Far) for name, tensor in original.items()}
of_place = {there[name].data_ptr(): Array(far[name].view("U8")) for name in there}
asked = []
def bytes_of(tensor):
    asked.append(tensor.data_ptr())
    return of_place[tensor.data_ptr()]
_stage._bytes_of = bytes_of
for keep in (False, True, True):
    writer = StorageWriter(sys.argv[2], cache_staged_state_dict=keep, staging_bytes=64 << 20)
    copies = writer.stage(there)
    assert all(copy.is_cpu for copy in copies.values())
    assert all(torch.equal(copies[name], tensor) for name, tensor in original.items())
assert len(asked) == 3 * 3, "torch copies the short one"
with straightway.Engine(gpu="off") as blind:
    try:
        StorageWriter(sys.argv[2], engine=blind).stage(there)
    except straightway.NoDevice:
        pass
    else:
        raise SystemExit("copied without a driver")
""",
        tmp_path / "model",
        tmp_path / "saved",
    )


def test_a_loader_fills_batches_in_a_gpu(gpu, tmp_path):
    write_tars(tmp_path / "tars")
    gpu(
        r"""
engine = straightway.Engine.shared()
on_host = {}
for batch in straightway.Loader(sys.argv[1], 8, seed=7):
    on_host.update({int(number): bytes(batch[at]) for at, number in enumerate(batch.samples)})
seen = 0
for batch in straightway.Loader(sys.argv[1], 8, seed=7, into="gpu0"):
    assert batch.device == "gpu0"
    for at, number in enumerate(batch.samples):
        assert bytes(engine.to_host(batch[at])) == on_host[int(number)]
        seen += 1
assert seen == len(on_host) == 100
""",
        tmp_path / "tars",
    )


def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy(data, gpu):
    path, _ = data
    gpu(
        r"""
with straightway.open(sys.argv[1]) as file:
    try:
        file.read(into="gpu7")
    except straightway.NoDevice as error:
        assert "gpu7" in str(error) or "7" in str(error), error
        assert error.remedy, error
    else:
        raise SystemExit("a GPU that is not there was read into")
""",
        path,
    )


def test_torch_takes_nothing_that_it_cannot_have(gpu, tmp_path, data):
    """A torch without CUDA cannot have memory of a GPU: an error that says so, no crash."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch has CUDA")
    path, _ = data
    gpu(
        r"""
import torch
with straightway.open(sys.argv[1]) as file:
    buffer = file.read(0, 4096, into="gpu0")
try:
    torch.from_dlpack(buffer)
except Exception as error:
    print(type(error).__name__, error)
else:
    raise SystemExit("torch took it")
""",
        path,
    )
