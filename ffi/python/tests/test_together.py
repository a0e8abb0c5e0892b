"""`load_together`: safetensors that are read once, and what becomes of a rank that fails."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import pytest

import straightway
from _ranks import ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed.checkpoint as dcp  # noqa: E402

from straightway.torch import load_file, load_model_together, load_together  # noqa: E402
from straightway.torch.checkpoint import StorageReader  # noqa: E402

SHAPES = {f"layer.{n}": (100 + n, 700) for n in range(12)} | {"long": (3000, 1000), "scalar": (), "none": (0, 4), "odd , ä name": (3,)}


def state(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return made | {"half": torch.randn(77, 5, generator=generator).bfloat16(), "bytes": torch.arange(9, dtype=torch.uint8)}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


HELPERS = f"""
SHAPES = {SHAPES!r}
""" + r"""
import straightway
from straightway.torch import _share, load_file, load_model_together, load_together
def state(seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return made | {"half": torch.randn(77, 5, generator=generator).bfloat16(), "bytes": torch.arange(9, dtype=torch.uint8)}
def same(left, right):
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name
def told(what, loaded):
    reader = loaded.reader
    print(what, reader.read_bytes, reader.exchanged["memory"], reader.exchanged["group"], reader.verification, flush=True)
"""

ONCE = HELPERS + r"""
_share.LONG_BYTES = 1 << 20
loaded = load_together(folder, verify="off")
same(loaded, state())
told("OFF", loaded)
loaded = load_together(folder)
same(loaded, state())
told("AUTO", loaded)
# A file alone; names that differ among the ranks; a group of some ranks.
name = sorted(os.listdir(folder))[0]
alone = load_together(os.path.join(folder, name))
same(alone, load_file(os.path.join(folder, name)))
mine = ["long", f"layer.{rank}", "none"]
same(load_together(folder, tensors=mine), {name: state()[name] for name in mine})
some = dist.new_group([1, 3])
if rank in (1, 3):
    loaded = load_together(folder, process_group=some, verify="off")
    same(loaded, state())
    told("SOME", loaded)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(SHAPES[f"layer.{n}"])) for n in range(12))
model = Model()
assert load_model_together(model, folder, strict=False)[0] == set()
assert all(torch.equal(parameter, state()[f"layer.{n}"]) for n, parameter in enumerate(model.layer))
# By the group: what the memory of the machine carries where it may.
_share.Exchange._is_near = lambda self, offer: False
loaded = load_together(folder, verify="off")
same(loaded, state())
told("GROUP", loaded)
# As NCCL would: by the load's own group, without a way through the host.
_share.Exchange._is_direct = lambda self, tensor: True
used = set()
pass_on = _share._pass_on
def watched(moved, group, among):
    used.add(group is dist.group.WORLD)
    pass_on(moved, group, among)
_share._pass_on = watched
loaded = load_together(folder, verify="off")
same(loaded, state())
told("DIRECT", loaded)
same(load_together(folder, tensors=mine), {name: state()[name] for name in mine})
assert used == {True}, used
# One rank that has no such group: all take the other one.
used.clear()
_share.Exchange._is_direct = lambda self, tensor: rank != 2
same(load_together(folder), state())
assert used == {False}, used
"""


def rows(processes, what: str) -> list[tuple[int, int, int, str]]:
    lines = [line.split() for process in processes for line in process.stdout.splitlines() if line.startswith(what + " ")]
    return [(int(read), int(memory), int(group), verification) for _, read, memory, group, verification in lines]


def test_four_ranks_read_each_byte_once(tmp_path: Path):
    straightway.save(state(), tmp_path / "model", shard_bytes=3 << 20)
    size = sum(tensor.nbytes for tensor in state().values())
    files = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    done = ranks(tmp_path, 4, ONCE, tmp_path / "model")
    for what, world in [("OFF", 4), ("SOME", 2), ("GROUP", 4), ("DIRECT", 4)]:
        got = rows(done, what)
        assert len(got) == world and sum(read for read, *_ in got) == size, (what, got)
        assert all(read + memory + group == size for read, memory, group, _ in got), (what, got)
        assert all((memory if what in ("GROUP", "DIRECT") else group) == 0 for _, memory, group, _ in got), (what, got)
        # As many each, but for a piece.
        assert max(read for read, *_ in got) - min(read for read, *_ in got) <= 1 << 20, (what, got)
    compared = rows(done, "AUTO")
    assert {verification for *_, verification in compared} == {"compared"}
    assert size < sum(read for read, *_ in compared) <= files, "what the checksums need is read once too"


FAILS = HELPERS + r"""
import signal, threading
from straightway.torch.checkpoint import StorageReader
def fails(what, act, kinds):
    started = time.monotonic()
    try:
        act()
    except kinds as error:
        print("ENDED", what, type(error).__name__, f"{time.monotonic() - started:.0f}", flush=True)
        return
    raise SystemExit(f"{what}: rank {rank} loaded")
missing = folder + ("-gone" if rank == 1 else "")
fails("head", lambda: load_together(missing, timeout=20), straightway.NotFound if rank == 1 else straightway.Cancelled)
fails("name", lambda: load_together(folder, tensors=["long", "no such"] if rank == 3 else None, timeout=20),
      straightway.NotFound if rank == 3 else straightway.Cancelled)
read = StorageReader._read
def bad(self, items, planner):
    if rank == 2:
        raise straightway.Io("the disk is gone")
    read(self, items, planner)
StorageReader._read = bad
fails("read", lambda: load_together(folder, timeout=20), straightway.Io if rank == 2 else straightway.Cancelled)
def interrupted(self, items, planner):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    read(self, items, planner)
StorageReader._read = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
fails("interrupt", lambda: load_together(folder, timeout=20), KeyboardInterrupt if rank == 0 else straightway.Cancelled)
# Damage is the same error on all.
StorageReader._read = read
dist.barrier()
if rank == 0:
    path = os.path.join(folder, sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))[0])
    with open(path, "r+b") as file:
        file.seek(-5, 2)
        file.write(b"\xff\x00\xff")
dist.barrier()
fails("damage", lambda: load_together(folder, timeout=20), straightway.ChecksumMismatch)
def dies(self, items, planner):
    if rank == 3:
        os._exit(0)
    read(self, items, planner)
StorageReader._read = dies
fails("death", lambda: load_together(folder, timeout=10), straightway.Cancelled)
os._exit(0)
"""


def test_what_one_rank_fails_by_all_raise_in_seconds(tmp_path: Path):
    straightway.save(state(), tmp_path / "model", shard_bytes=3 << 20)
    started = time.monotonic()
    done = ranks(tmp_path, 4, FAILS, tmp_path / "model", check=False)
    assert all(process.returncode == 0 for process in done), "\n".join(process.stderr[-3000:] for process in done)
    ended = [line.split()[1:] for process in done for line in process.stdout.splitlines() if line.startswith("ENDED")]
    for what, own in [("head", "NotFound"), ("name", "NotFound"), ("read", "Io"), ("interrupt", "KeyboardInterrupt")]:
        assert sorted(kind for case, kind, _ in ended if case == what) == sorted([own] + ["Cancelled"] * 3), (what, ended)
    assert [kind for case, kind, _ in ended if case == "damage"] == ["ChecksumMismatch"] * 4, ended
    assert [kind for case, kind, _ in ended if case == "death"] == ["Cancelled"] * 3, ended
    assert max(int(seconds) for *_, seconds in ended) <= 25, ended
    assert time.monotonic() - started < 140


def test_without_a_group_one_process_reads_all(tmp_path: Path):
    straightway.save(state(), tmp_path / "model", shard_bytes=3 << 20)
    loaded = load_together(tmp_path / "model", verify="off")
    same(loaded, state())
    assert loaded.reader.read_bytes == sum(tensor.nbytes for tensor in state().values())
    assert loaded.reader.exchanged == {"memory": 0, "group": 0}
    same(load_together(tmp_path / "model", tensors="long"), {"long": state()["long"]})
    model = torch.nn.Linear(4, 2)
    straightway.torch.save_model(model, tmp_path / "linear.safetensors")
    other = torch.nn.Linear(4, 2)
    assert load_model_together(other, tmp_path / "linear.safetensors") == (set(), [])
    assert torch.equal(other.weight, model.weight)


def test_an_element_at_an_odd_address_is_loaded(tmp_path: Path):
    # Headers of old writers have any length.
    head = json.dumps({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    head += b" " * (9 - len(head) % 8)
    values = torch.arange(5, dtype=torch.float32)
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + values.numpy().tobytes())
    loaded = load_together(tmp_path / "odd.safetensors")
    assert torch.equal(loaded["a"], values) and loaded["a"].data_ptr() % 4 == 0


def test_dcp_load_takes_safetensors_and_files_of_torch(tmp_path: Path):
    saved = state()
    straightway.save(saved, tmp_path / "sharded", shard_bytes=2 << 20)
    straightway.torch.save_file(saved, tmp_path / "one.safetensors")
    torch.save(saved, tmp_path / "file.pt")
    index = next((tmp_path / "sharded").glob("*.index.json"))
    for path in [tmp_path / "sharded", index, tmp_path / "one.safetensors", tmp_path / "file.pt"]:
        wanted = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
        wanted["layer.3"] = torch.zeros(SHAPES["layer.3"], dtype=torch.float64)
        reader = StorageReader(path)
        dcp.load(wanted, storage_reader=reader, no_dist=True, planner=dcp.DefaultLoadPlanner(flatten_state_dict=False))
        wanted["layer.3"] = wanted["layer.3"].float()
        same(wanted, saved)
        assert reader.by_torch == [] and reader.staged == ["layer.3"]
    with pytest.raises(straightway.BadFormat):
        (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
        load_together(tmp_path / "bad.safetensors")
    with pytest.raises(straightway.NotFound, match="no such"):
        load_together(tmp_path / "one.safetensors", tensors=["no such"])
    with pytest.raises(straightway.NotFound, match="nowhere.safetensors"):
        load_together(tmp_path / "nowhere.safetensors")


def test_what_torchs_own_export_wrote_is_read_by_boxes(tmp_path: Path):
    """Shards of tensors in files of several ranks, with their places in the metadata of the files."""
    whole = torch.arange(40 * 30, dtype=torch.float32).reshape(40, 30)
    for number, (start, part) in enumerate([((0, 0), whole[:25]), ((25, 0), whole[25:])]):
        told = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": list(start)}}), "DCP_VERSION": "1.0", "format": "pt"}
        straightway.torch.save_file({"w": part.clone()}, tmp_path / f"shard-{number:05}-model-00001-of-00001.safetensors", told)
    loaded = load_together(tmp_path)
    assert torch.equal(loaded["w"], whole)
    assert os.listdir(tmp_path)
