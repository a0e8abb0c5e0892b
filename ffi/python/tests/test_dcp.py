"""torch.distributed.checkpoint: our reader and writer beside the original ones, alone and with ranks."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path

import pytest

import straightway
from _ranks import failures, ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from straightway.torch import _blob, checkpoint  # noqa: E402
from straightway.torch.checkpoint import StorageReader, StorageWriter  # noqa: E402

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]
DTYPES += ["complex128", "uint16", "uint32", "float8_e4m3fn", "float8_e5m2"]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def state(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        raw = torch.randint(0, 2, (4, 6, 8 * dtype.itemsize), generator=generator, dtype=torch.uint8)
        tensors[name] = raw.bool() if dtype == torch.bool else raw.view(dtype)
    return {
        "types": tensors,
        "large": random(700, 999),
        "scalar": random(1)[0],
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(random(5, 5)),
        "transposed": random(30, 40).T,
        "odd , ä name": random(3),
        "objects": {"step": seed, "text": "x" * 1000, "list": [1, (2, 3)]},
    }


def flat(nested: dict, prefix: str = "") -> dict:
    rows = {}
    for key, value in nested.items():
        rows |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return rows


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(left: dict, right: dict) -> None:
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.shape, raw(value)) == (right[key].dtype, right[key].shape, raw(right[key])), key
        else:
            assert value == right[key], key


@pytest.mark.parametrize("writer", [dcp.FileSystemWriter, StorageWriter])
@pytest.mark.parametrize("reader", [dcp.FileSystemReader, StorageReader])
def test_each_reader_reads_what_each_writer_wrote(tmp_path: Path, writer, reader):
    saved, loaded = state(1), state(2)
    dcp.save(saved, storage_writer=writer(tmp_path), no_dist=True)
    used = reader(tmp_path)
    dcp.load(loaded, storage_reader=used, no_dist=True)
    same(saved, loaded)
    if reader is StorageReader:
        # The original writes a transposed tensor with its strides.
        assert used.by_torch == ([] if writer is StorageWriter else ["transposed"])
        files = sum(file.stat().st_size for file in tmp_path.glob("*.distcp"))
        assert used.read_bytes < files + 200_000


def test_every_blob_of_ours_is_a_file_of_torch(tmp_path: Path):
    import zipfile

    saved = state(3)
    dcp.save(saved, storage_writer=StorageWriter(tmp_path), no_dist=True)
    metadata = dcp.FileSystemReader(tmp_path).read_metadata()
    content = (tmp_path / "__0_0.distcp").read_bytes()
    tensors = flat(saved)
    for index, info in metadata.storage_data.items():
        blob = content[info.offset : info.offset + info.length]
        value = torch.load(io.BytesIO(blob), weights_only=True)
        if index.offset is not None:
            assert zipfile.ZipFile(io.BytesIO(blob)).testzip() is None
            assert raw(value) == raw(tensors[index.fqn.replace(".", "/")])
            where = _blob.Locator().locate(memoryview(blob)[: _blob.HEAD_BYTES], len(blob))
            if value.numel() * value.element_size() >= 256 << 10:
                assert (info.offset + where.at) % 4096 == 0


def test_load_takes_what_torch_and_its_checkpoints_write(tmp_path: Path):
    saved = {"a": torch.randn(300, 40), "nested": {"b": torch.arange(10), "c": torch.zeros(3, dtype=torch.bfloat16)}}
    torch.save(saved, tmp_path / "file.pt")
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path / "theirs"), no_dist=True)
    dcp.save(saved, storage_writer=StorageWriter(tmp_path / "ours"), no_dist=True)
    for path in ["file.pt", "theirs", "ours"]:
        loaded = straightway.load(tmp_path / path, framework="torch")
        assert sorted(loaded) == ["a", "nested.b", "nested.c"]
        same({"x": loaded["a"], "y": loaded["nested.b"]}, {"x": saved["a"], "y": saved["nested"]["b"]})
        with straightway.safe_open(tmp_path / path, "pt") as file:
            assert torch.equal(file.get_slice("a")[5:100, 3:7], saved["a"][5:100, 3:7])
            assert set(file.keys()) == set(loaded)


def test_destinations_of_other_types_and_strides_are_filled(tmp_path: Path):
    saved = {"a": torch.randn(300, 200), "b": torch.randn(64, 64), "c": torch.randn(2000, 40)}
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    wide = torch.zeros(2000, 80)
    loaded = {"a": torch.zeros(300, 200, dtype=torch.float64), "b": torch.zeros(64, 64).T, "c": wide[:, 20:60]}
    reader = StorageReader(tmp_path)
    dcp.load(loaded, storage_reader=reader, no_dist=True)
    assert torch.equal(loaded["a"], saved["a"].double()) and torch.equal(loaded["b"], saved["b"])
    assert torch.equal(wide[:, 20:60], saved["c"]) and not wide[:, :20].any() and not wide[:, 60:].any()
    assert set(reader.staged) == {"a", "b", "c"}


def test_a_wrong_shape_is_an_error(tmp_path: Path):
    dcp.save({"a": torch.zeros(4, 4)}, storage_writer=StorageWriter(tmp_path), no_dist=True)
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"a": torch.zeros(4, 5)}, storage_reader=StorageReader(tmp_path), no_dist=True)
    assert "Size mismatch" in str(failures(caught.value)[0])


def test_metadata_that_calls_something_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "called"),)

    for content in [pickle.dumps(Evil()), b"", b"\x80\x04.", pickle.dumps({"a": 1})]:
        (tmp_path / ".metadata").write_bytes(content)
        with pytest.raises(straightway.BadFormat):
            StorageReader(tmp_path).read_metadata()
    assert not (tmp_path / "called").exists()


def test_a_blob_that_calls_something_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "called"),)

    blob = io.BytesIO()
    torch.save(Evil(), blob)
    assert _blob.Locator().locate(memoryview(blob.getvalue())[: _blob.HEAD_BYTES], len(blob.getvalue())) is None
    for cut in range(0, 900, 7):
        whole = io.BytesIO()
        torch.save(torch.arange(1000.0), whole)
        damaged = bytearray(whole.getvalue())
        damaged[cut] ^= 0x55
        where = _blob.Locator().locate(memoryview(damaged)[: _blob.HEAD_BYTES], len(damaged))
        assert where is None or 0 < where.at <= len(damaged) - 4000
    assert not (tmp_path / "called").exists()


def test_a_truncated_file_is_an_error(tmp_path: Path):
    dcp.save({"a": torch.randn(1000, 1000)}, storage_writer=StorageWriter(tmp_path), no_dist=True)
    os.truncate(tmp_path / "__0_0.distcp", 2_000_000)
    wanted = {"a": torch.zeros(1000, 1000)}
    with pytest.raises(CheckpointException) as caught:
        dcp.load(wanted, storage_reader=StorageReader(tmp_path, verify="off"), no_dist=True)
    error = failures(caught.value)[0]
    assert isinstance(error, straightway.BadFormat) and "past the object" in str(error) and "__0_0.distcp" in str(error)


def test_no_checkpoint_is_left_by_a_save_that_failed(tmp_path: Path):
    class Broken(StorageWriter):
        def write_data(self, plan, planner):
            super().write_data(plan, planner)
            raise OSError("after the data")

    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.zeros(4)}, storage_writer=Broken(tmp_path), no_dist=True)
    assert isinstance(failures(caught.value)[0], OSError) and "after the data" in str(caught.value)
    assert not (tmp_path / ".metadata").exists()
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"a": torch.zeros(4)}, storage_reader=StorageReader(tmp_path), no_dist=True)
    # Torch looks for two names and tells of both.
    assert ".metadata failed: no such file or directory" in str(failures(caught.value)[0])


def test_ten_thousand_tensors(tmp_path: Path):
    saved = {f"t{n}": torch.full((n % 13 + 1,), float(n)) for n in range(10_000)}
    dcp.save(saved, storage_writer=StorageWriter(tmp_path), no_dist=True)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    dcp.load(loaded, storage_reader=StorageReader(tmp_path), no_dist=True)
    same(saved, loaded)


# World 4: save, each rank alone, shared, an error of one rank; then one dies.
FOUR = r"""
dcp.save(sharded(whole(1)), storage_writer=StorageWriter(folder))
for share in (False, True):
    reader = StorageReader(folder, share=share)
    loaded = sharded(whole(2))
    dcp.load(loaded, storage_reader=reader)
    check(loaded, 1)
    assert not reader.by_torch
    print("READ", share, reader.read_bytes, flush=True)
    print("GOT", share, reader.exchanged["memory"], reader.exchanged["group"], reader.why_group, flush=True)

# Ranks that may not look into each other exchange by the process group: one that nobody may look into, then all.
from straightway.torch import _share
class Shy:
    admit_siblings = admit_nobody = staticmethod(lambda: None)
    def __init__(self, pid): self.pid = pid
    def read_many(self, parts):
        if hidden is None or self.pid == hidden:
            raise PermissionError("not allowed to look")
        return open_hearted(self.pid).read_many(parts)
open_hearted = _share.Neighbour
_share.Neighbour = Shy
pids = [None] * world
dist.all_gather_object(pids, os.getpid())
for hidden in (pids[0], None):
    reader = StorageReader(folder, share=True)
    loaded = sharded(whole(2))
    dcp.load(loaded, storage_reader=reader)
    check(loaded, 1)
    print("GOT", "one" if hidden else "all", reader.exchanged["memory"], reader.exchanged["group"], reader.why_group, flush=True)
_share.Neighbour = open_hearted

class Bad(StorageReader):
    def _read(self, items, planner):
        if rank == 2:
            raise OSError("the disk of rank 2 is gone")
        super()._read(items, planner)

start = time.monotonic()
try:
    dcp.load(sharded(whole(2)), storage_reader=Bad(folder, share=True))
except BaseException as error:
    assert "the disk of rank 2 is gone" in str(error), error
    print("RAISED", time.monotonic() - start, flush=True)

class Dies(StorageReader):
    def _read(self, items, planner):
        if rank == 2:
            os._exit(7)
        super()._read(items, planner)

start = time.monotonic()
try:
    dcp.load(sharded(whole(2)), storage_reader=Dies(folder, share=True, timeout=10))
except BaseException:
    print("ENDED", time.monotonic() - start, flush=True)
os._exit(0)
"""
TWO = r"""
def loops():
    names = (open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))
    return sum(name.startswith("gloo_tcp_loop") for name in names)
before = loops()
theirs = sharded(whole(2))
dcp.load(theirs, storage_reader=dcp.FileSystemReader(folder))
check(theirs, 1)
ours = sharded(whole(3))
shared = StorageReader(folder, share=True)
dcp.load(ours, storage_reader=shared)
check(ours, 1)
assert loops() > before, "the ranks exchanged by a group of their own"
state = sharded(whole(4))
future = dcp.async_save(state, storage_writer=StorageWriter(folder + "-later"))
for tensor in state.values():
    tensor.to_local().zero_()
future.result()
dcp.load(ours, storage_reader=StorageReader(folder + "-later"))
check(ours, 4)
dist.destroy_process_group()
assert loops() <= before, "a group of ours outlived the job's"
"""


def test_ranks_save_load_share_and_fail_together(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    done = ranks(tmp_path, 4, FOUR, folder, check=False)
    report = "\n".join(process.stdout + process.stderr[-3000:] for process in done)
    lines = [[line.split() for line in process.stdout.splitlines()] for process in done]
    assert len(list(folder.glob("*.distcp"))) == 4, report
    read = {share: sum(int(line[2]) for rank in lines for line in rank if line[:2] == ["READ", share]) for share in ("False", "True")}
    # Each byte once, what lies between tensors too, which is read to compare the checksums; and a head of 2 KiB for each chunk at each
    # rank that looks for it: 4 chunks each of three tensors, at the rank that has them, the fourth at the rank that reads it for all.
    tensors = 4 * (2 * 400 * 500 + 300 * 1000 + 21)
    files = sum(file.stat().st_size for file in folder.glob("*.distcp"))
    assert tensors <= read["True"] <= files + 16 * 2048 and files < tensors + 100_000, report
    assert read["False"] >= tensors + 3 * 4 * 300 * 1000, report
    # The fourth tensor comes to three ranks, by memory or by the group, which says why.
    shared = 3 * 4 * 300 * 1000
    got = {kind: [line[2:] for rank in lines for line in rank if line[:2] == ["GOT", kind]] for kind in ("True", "one", "all")}
    assert sum(int(line[0]) for line in got["True"]) == shared, report
    assert all(line[1:] == ["0"] for line in got["True"]), report
    assert sum(int(line[0]) + int(line[1]) for line in got["one"]) == shared, report
    assert sum(int(line[1]) for line in got["all"]) == shared, report
    assert sum("allowed" in line for line in got["all"]) == 3, report
    for rank in range(4):
        took = [float(line[1]) for line in lines[rank] if line[0] == "RAISED"]
        # Before the others would give up waiting.
        assert took and took[0] < 10, report
    # A rank that dies ends the others within the time limit of the exchange.
    assert done[2].returncode == 7, report
    for rank in (0, 1, 3):
        took = [float(line[1]) for line in lines[rank] if line[0] == "ENDED"]
        assert took and took[0] < 20, report


# World 4: rank 0 wants all of a tensor, ranks 1 and 2 rows of it that overlap, rank 3 columns, which are not cut.
OVERLAPS = r"""
tensors = {"large": torch.randn((1200, 1000), generator=torch.Generator().manual_seed(1)), "small": torch.arange(120.0).reshape(30, 4)}
dcp.save(tensors if rank == 0 else {}, storage_writer=StorageWriter(folder))
def part(name):
    full = tensors[name]
    size = full.shape[0] // 3
    cut = {1: (slice(0, 2 * size), slice(None)), 2: (slice(size, None), slice(None)), 3: (slice(None), slice(1, 3))}.get(rank)
    return full if cut is None else full[cut]
class Planner(dcp.DefaultLoadPlanner):
    # Wants a part of each tensor, as no kind of sharding of torch does.
    def create_local_plan(self):
        plan = super().create_local_plan()
        if rank == 0:
            return plan
        items = []
        for item in plan.items:
            ours = part(item.storage_index.fqn)
            row, column = (ours.storage_offset() // 1000, ours.storage_offset() % 1000) if ours.shape[1] > 4 else (ours.storage_offset() // 4, ours.storage_offset() % 4)
            places = {"storage_offsets": torch.Size([row, column]), "lengths": ours.shape}
            items.append(dataclasses.replace(item, **places))
        return dataclasses.replace(plan, items=items)
    def resolve_tensor(self, item):
        tensor = self.state_dict[item.dest_index.fqn]
        return tensor[tuple(slice(at, at + size) for at, size in zip(item.dest_offsets, item.lengths))]
import dataclasses
for share in (False, True):
    # What the plan reads, without what checksums would ask for beside it.
    reader = StorageReader(folder, share=share, verify="off")
    # Larger than what is asked for where that is a part: the rest stays.
    loaded = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    dcp.load(loaded, storage_reader=reader, planner=Planner())
    for name, tensor in loaded.items():
        ours = part(name)
        assert torch.equal(tensor[: ours.shape[0], : ours.shape[1]], ours), (rank, share, name)
    print("READ", share, reader.read_bytes, sum(reader.exchanged.values()), flush=True)
dist.destroy_process_group()
"""


def test_rows_that_one_rank_wants_beside_others_are_read_once(tmp_path: Path):
    done = ranks(tmp_path, 4, OVERLAPS, tmp_path / "checkpoint")
    lines = [line.split() for process in done for line in process.stdout.splitlines() if line.startswith("READ")]
    read = {share: sum(int(line[2]) for line in lines if line[1] == share) for share in ("False", "True")}
    row, heads = 4 * 1000, 4 * 2 * 2048
    # By ranks 0, 1, 2 and, with the gaps between its columns, 3; then each third once, and rank 3.
    assert (1200 + 800 + 800 + 1199) * row <= read["False"] <= 4000 * row + heads, lines
    assert (1200 + 1199) * row <= read["True"] <= 2400 * row + heads + 4 * 480, lines
    assert sum(int(line[3]) for line in lines if line[1] == "True") == (800 + 800) * row, lines


def test_another_world_size_loads_and_an_asynchronous_save_takes_what_was_there(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    ranks(tmp_path, 4, "dcp.save(sharded(whole(1)), storage_writer=StorageWriter(folder))\ndist.destroy_process_group()\n", folder)
    ranks(tmp_path, 2, TWO, folder)


def test_a_name_that_leaves_the_directory_is_not_opened(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    dcp.save({"a": torch.zeros(4)}, storage_writer=StorageWriter(folder), no_dist=True)
    (folder / "__0_0.distcp").rename(tmp_path / "outside")
    metadata = StorageReader(folder).read_metadata()
    for name in ["../outside", str(tmp_path / "outside"), "", ".", "x/../../outside", "a\0b"]:
        for info in metadata.storage_data.values():
            info.relative_path = name
        metadata.storage_meta = None
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(straightway.BadFormat, match="below the directory"):
            StorageReader(folder).read_metadata()


def test_a_length_that_the_metadata_claims_is_not_allocated(tmp_path: Path):
    dcp.save({"a": torch.zeros(4), "step": 7}, storage_writer=StorageWriter(tmp_path), no_dist=True)
    metadata = StorageReader(tmp_path).read_metadata()
    for info in metadata.storage_data.values():
        info.length = 1 << 60
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    for state in [{"a": torch.zeros(4)}, {"step": 0}]:
        with pytest.raises(CheckpointException) as caught:
            dcp.load(state, storage_reader=StorageReader(tmp_path), no_dist=True)
        error = failures(caught.value)[0]
        assert isinstance(error, straightway.BadFormat) and "past the object" in str(error)


def test_files_of_two_checkpoints_are_told_from_each_other(tmp_path: Path):
    for folder, shape in [("one", (4, 8)), ("two", (8, 4))]:
        dcp.save({"a": torch.randn(shape)}, storage_writer=StorageWriter(tmp_path / folder), no_dist=True)
    os.replace(tmp_path / "two" / "__0_0.distcp", tmp_path / "one" / "__0_0.distcp")
    # The checksums tell it too; without them the types and shapes do.
    (tmp_path / "one" / "straightway.checksums.json").unlink()
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"a": torch.zeros(4, 8)}, storage_reader=StorageReader(tmp_path / "one"), no_dist=True)
    error = failures(caught.value)[0]
    assert isinstance(error, straightway.BadFormat) and "files of two checkpoints" in str(error)


def test_what_is_staged_goes_through_little_memory_in_pieces(tmp_path: Path, monkeypatch):
    from straightway.torch import checkpoint

    saved = {"a": torch.randn(3, 50, 40), "b": torch.randn(7000), "c": torch.randn(1)[0]}
    dcp.save(saved, storage_writer=StorageWriter(tmp_path), no_dist=True)
    kept = checkpoint._Batch.clear
    most = []

    def clear(batch):
        most.append(getattr(batch, "staged", 0))
        kept(batch)

    monkeypatch.setattr(checkpoint._Batch, "clear", clear)
    monkeypatch.setattr(checkpoint, "STAGING_BYTES", 3000)
    for piece in [4, 160, 164, 1000, 1 << 20]:
        monkeypatch.setattr(checkpoint, "STAGED_PIECE_BYTES", piece)
        loaded = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in saved.items()}
        loaded["a"] = torch.zeros(40, 50, 3).T
        dcp.load(loaded, storage_reader=StorageReader(tmp_path), no_dist=True)
        assert torch.equal(loaded["a"], saved["a"])
        assert torch.equal(loaded["b"], saved["b"].double()) and loaded["c"] == saved["c"].double()
        assert piece > 3000 or max(most) < 3000 + piece, (piece, most)


def test_few_of_many_files_are_open_at_once(tmp_path: Path, monkeypatch):
    saved = {f"t{n}": torch.full((5,), float(n)) for n in range(60)}
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path, single_file_per_rank=False), no_dist=True)
    assert len(list(tmp_path.glob("*.distcp"))) == 60
    monkeypatch.setattr(checkpoint, "FILES_OPEN_MAX", 8)
    before, counts = len(os.listdir("/proc/self/fd")), []

    class Counted(StorageReader):
        def _flush(self, batch):
            counts.append(len(os.listdir("/proc/self/fd")) - before)
            super()._flush(batch)

    loaded = {name: torch.zeros(5) for name in saved}
    dcp.load(loaded, storage_reader=Counted(tmp_path), no_dist=True)
    same(saved, loaded)
    # What an engine that was not there before has for itself, and two descriptors of each file.
    assert len(counts) == 8 and counts[-1] <= counts[0] <= 2 * 8 + 16, counts


def test_shared_loads_of_odd_tensors_and_after_errors(tmp_path: Path):
    body = r"""
def state(fill):
    tensors = {f"t{n}": torch.full((n % 7,), fill + n) for n in range(300)}
    return {**tensors, "empty": torch.zeros(0, 5), "scalar": torch.tensor(fill), "flag": torch.tensor([fill > 1]),
        "complex": torch.full((3,), fill, dtype=torch.complex64), "step": int(fill), "text": str(fill),
        "strided": torch.full((4, 6), fill).T}
saved = state(2.0)
dcp.save(saved, storage_writer=StorageWriter(folder))
def load(wanted, reader=None, planner=None):
    dcp.load(wanted, storage_reader=reader or StorageReader(folder, share=True), planner=planner)
    return wanted
def good():
    loaded = load(state(1.0))
    for name, value in saved.items():
        assert torch.equal(loaded[name], value) if isinstance(value, torch.Tensor) else loaded[name] == value, name
def bad(text, wanted, reader=None, planner=None):
    start = time.monotonic()
    try:
        load(wanted, reader, planner)
    except BaseException as error:
        assert text in str(error), error
        # Before anybody would give up waiting.
        assert time.monotonic() - start < 10
    else:
        raise SystemExit("no error")
    dist.barrier()
    good()
good()
# One rank cannot read the metadata: no other rank waits for it in the making of a group.
class NoMetadata(StorageReader):
    def read_metadata(self, *args, **kwargs):
        if rank == 1:
            raise OSError("no metadata on rank 1")
        return super().read_metadata(*args, **kwargs)
bad("no metadata on rank 1", state(1.0), NoMetadata(folder, share=True))
# What one rank wants as another type than the rank that reads it has, it reads by itself.
other = state(1.0)
for name in ("t6", "t13", "t20", "t27", "t34"):
    if rank == 1:
        other[name] = other[name].double()
load(other)
for name, value in saved.items():
    if isinstance(value, torch.Tensor):
        assert torch.equal(other[name], value.to(other[name].dtype)), name
# A planner that takes other items than the plan of all ranks has.
class Keeps(dcp.DefaultLoadPlanner):
    def create_local_plan(self):
        self.mine = super().create_local_plan()
        return self.mine
    def finish_plan(self, plan):
        return dataclasses.replace(plan, items=self.mine.items[:-1]) if rank == 2 else plan
import dataclasses
bad("finish_plan gave", state(1.0), planner=Keeps())
# Alone, while there are others: nothing to share, nobody to wait for.
if rank == 0:
    dcp.load(state(1.0), storage_reader=StorageReader(folder, share=True), no_dist=True)
dist.barrier()
print("all", flush=True)
# A rank dies when it has read a part that others copy already.
from straightway.torch import _share
_share.WAVE_BYTES = 1
class Dies(StorageReader):
    waves = 0
    def _read(self, items, planner):
        Dies.waves += 1
        if rank == 2 and Dies.waves == 20:
            os._exit(7)
        super()._read(items, planner)
start = time.monotonic()
try:
    load(state(1.0), Dies(folder, share=True, timeout=10))
except BaseException:
    print("ended", time.monotonic() - start, flush=True)
os._exit(0)
"""
    done = ranks(tmp_path, 3, body, tmp_path / "checkpoint", check=False)
    assert all("all" in process.stdout for process in done), done
    assert [process.returncode for process in done] == [0, 0, 7], done
    for process in done[:2]:
        took = [float(line.split()[1]) for line in process.stdout.splitlines() if line.startswith("ended")]
        assert took and took[0] < 20, done


def test_lazily_conjugated_and_negated_tensors_are_saved_as_their_values(tmp_path: Path):
    saved = {"conjugated": torch.randn(40, dtype=torch.complex64).conj(), "negated": torch._neg_view(torch.randn(5))}
    straightway.save(saved, tmp_path / "plain")
    dcp.save(saved, storage_writer=StorageWriter(tmp_path / "dcp"), no_dist=True)
    for folder in ["plain", "dcp"]:
        loaded = straightway.load(tmp_path / folder, framework="torch")
        assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_save_takes_the_place_of_another_as_a_whole(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    writer = StorageWriter(folder)
    dcp.save({"a": torch.ones(4), "b": torch.ones(300_000)}, storage_writer=writer, no_dist=True)
    report = writer.report
    assert report.bytes == (folder / "__0_0.distcp").stat().st_size and "staged" in str(report)
    dcp.save({"a": torch.zeros(4)}, storage_writer=writer, no_dist=True)
    assert visible(folder) == {".metadata", "__0_0.distcp", "straightway.checksums.json"} and visible(tmp_path) == {"checkpoint"}
    assert list(straightway.load(folder, framework="torch")) == ["a"]
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.ones(4)}, storage_writer=StorageWriter(folder, overwrite=False), no_dist=True)
    error = failures(caught.value)[0]
    assert isinstance(error, straightway.AlreadyExists) and "not empty" in str(error)
    # What is no part of a checkpoint is never removed with one.
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.ones(4)}, storage_writer=writer, no_dist=True)
    error = failures(caught.value)[0]
    assert isinstance(error, straightway.AlreadyExists) and "notes.txt" in str(error)
    assert (folder / "notes.txt").read_text() == "mine" and visible(tmp_path) == {"checkpoint"}
    loaded = {"a": torch.ones(4)}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert not loaded["a"].any()


def test_checksums_lie_beside_what_was_saved(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    dcp.save({"a": torch.ones(3_000_000)}, storage_writer=StorageWriter(folder), no_dist=True)
    assert straightway.load(folder, framework="torch")["a"].sum() == 3_000_000
    with open(folder / "__0_0.distcp", "r+b") as file:
        file.seek(6_000_000)
        file.write(b"\x01")
    with pytest.raises(straightway.ChecksumMismatch):
        straightway.load(folder)


KILLED = r"""
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed.checkpoint as dcp
from straightway.torch.checkpoint import StorageWriter
folder, step = sys.argv[1], sys.argv[2]
dcp.save({"a": torch.ones(1000, 1000)}, storage_writer=StorageWriter(folder), no_dist=True)
class Killed(StorageWriter):
    def _die(self, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
    def write_data(self, plan, planner):
        self._die("begun")
        done = super().write_data(plan, planner)
        self._die("written")
        return done
    def finish(self, metadata, results):
        super().finish(metadata, results)
        self._die("committed")
dcp.save({"a": torch.zeros(1000, 1000)}, storage_writer=Killed(folder), no_dist=True)
"""


@pytest.mark.parametrize("step", ["begun", "written", "committed"])
def test_a_save_that_is_killed_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path, script, step: str):
    runs = tmp_path / "runs"
    runs.mkdir()
    folder = runs / "checkpoint"
    assert script(KILLED, folder, step, check=False).returncode == -9
    loaded = {"a": torch.full((1000, 1000), 7.0)}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert torch.equal(loaded["a"], (torch.zeros if step == "committed" else torch.ones)(1000, 1000))
    assert (len(visible(runs)) > 1) == (step != "committed")
    # The next save of that name takes away what the dead one left.
    dcp.save({"a": torch.ones(3)}, storage_writer=StorageWriter(folder), no_dist=True)
    assert visible(runs) == {"checkpoint"}


def test_ranks_that_fail_in_a_save_leave_the_old_checkpoint(tmp_path: Path):
    runs = tmp_path / "runs"
    runs.mkdir()
    body = r"""
dcp.save(sharded(whole(1)), storage_writer=StorageWriter(folder))
class Bad(StorageWriter):
    def write_data(self, plan, planner):
        if rank == 2:
            raise OSError("the disk of rank 2 is full")
        return super().write_data(plan, planner)
try:
    dcp.save(sharded(whole(2)), storage_writer=Bad(folder))
except BaseException as error:
    assert "the disk of rank 2 is full" in str(error), error
    print("RAISED", flush=True)
dist.barrier()
loaded = sharded(whole(3))
dcp.load(loaded, storage_reader=dcp.FileSystemReader(folder))
check(loaded, 1)
dist.barrier()
# An error of the coordinator's own step reaches all.
if rank == 0:
    open(folder + "/notes.txt", "w").close()
dist.barrier()
try:
    dcp.save(sharded(whole(2)), storage_writer=StorageWriter(folder))
except BaseException as error:
    assert "notes.txt" in str(error), error
    print("REFUSED", flush=True)
dist.barrier()
if rank == 0:
    os.remove(folder + "/notes.txt")
dist.barrier()
writer = StorageWriter(folder)
future = dcp.async_save(sharded(whole(4)), storage_writer=writer)
future.result()
assert writer.stall > 0 and writer.report.bytes > 0
dcp.load(loaded, storage_reader=dcp.FileSystemReader(folder))
check(loaded, 4)
dist.destroy_process_group()
"""
    done = ranks(tmp_path, 4, body, runs / "checkpoint")
    assert all("RAISED" in process.stdout and "REFUSED" in process.stdout for process in done)
    assert visible(runs) == {"checkpoint"}
    names = {".metadata", "straightway.checksums.json", *(f"__{rank}_0.distcp" for rank in range(4))}
    assert visible(runs / "checkpoint") == names


def test_steps_of_a_run_are_listed_and_only_the_wanted_ones_stay(tmp_path: Path):
    steps = straightway.Steps(tmp_path)
    assert steps.latest() is None
    for step in [100, 200, 300, 400]:
        dcp.save({"a": torch.full((3,), float(step))}, storage_writer=StorageWriter(steps.path(step)), no_dist=True)
    straightway.save({"a": torch.ones(3)}, steps.path(500))
    (tmp_path / "step-000600").mkdir()
    assert steps.list() == [100, 200, 300, 400, 500] and steps.latest() == 500
    assert steps.retain(2, every=200) == [100, 300]
    assert steps.list() == [200, 400, 500] and "step-000600" in visible(tmp_path)
    with pytest.raises(straightway.ApiMisuse):
        steps.retain(0)
