"""`load_state_dict_together`: a trainer's state restored in place by another number of ranks than wrote it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest

import straightway
from _ranks import ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed.checkpoint as dcp  # noqa: E402

from straightway.torch import _blob, load_state_dict_together  # noqa: E402

# What all worlds have: DTensors by rows and by columns, whole ones, odd ones of which some ranks have nothing, nested dicts, what is no
# tensor, and an object with a state of its own.
STATE = r"""
import straightway
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed._shard.sharded_tensor import Shard as Piece, init_from_local_shards
from straightway.torch import load_state_dict_together
class Counter(Stateful):
    def __init__(self, count):
        self.count, self.mean = count, torch.full((5,), float(count))
    def state_dict(self):
        return {"count": self.count, "mean": self.mean}
    def load_state_dict(self, state):
        self.count, self.mean = state["count"], state["mean"]
PLAIN = {"plain": torch.arange(70_000.0).reshape(700, 100), "half": torch.arange(999).bfloat16(), "scalar": torch.tensor(5.0)}
def pieces(value):
    rows = len(value) // world
    mine = value[rank * rows : (rank + 1) * rows].clone()
    return init_from_local_shards([Piece.from_tensor_and_offsets(mine, [rank * rows, 0], rank)], *value.shape)
def made(seed, zero=False):
    tensors = sharded(whole(seed))
    plain = {name: tensor.clone() for name, tensor in PLAIN.items()}
    state = {"model": tensors, "plain": plain, "old": pieces(torch.arange(4800.0).reshape(48, 100)), "step": 17, "name": "run"}
    state["list"] = [torch.arange(10.0), {"deep": torch.arange(300)}]
    state["counter"] = Counter(3)
    if zero:
        for tensor in [tensor.to_local() for tensor in tensors.values()] + list(plain.values()) + [state["old"].local_tensor()]:
            tensor.zero_()
        state["list"] = [torch.zeros(10), {"deep": torch.zeros(300, dtype=torch.int64)}]
        state["step"], state["name"], state["counter"] = 0, "", Counter(0)
    return state
def compare(state, seed):
    check(state["model"], seed)
    for name, tensor in PLAIN.items():
        assert torch.equal(state["plain"][name], tensor), name
    rows = 48 // world
    assert torch.equal(state["old"].local_tensor(), torch.arange(4800.0).reshape(48, 100)[rank * rows : (rank + 1) * rows])
    assert (state["step"], state["name"]) == (17, "run")
    assert torch.equal(state["list"][0], torch.arange(10.0)) and torch.equal(state["list"][1]["deep"], torch.arange(300))
    assert state["counter"].count == 3 and torch.equal(state["counter"].mean, torch.full((5,), 3.0))
"""

SAVE = STATE + r"""
dcp.save(made(1), checkpoint_id=folder)
dcp.save(made(1), storage_writer=StorageWriter(folder + "-ours"))
"""

RESTORE = STATE + r"""
for at in (folder, folder + "-ours"):
    state = made(1, zero=True)
    where = {name: tensor.to_local().data_ptr() for name, tensor in state["model"].items()}
    reader = load_state_dict_together(state, at, verify="off")
    compare(state, 1)
    assert where == {name: tensor.to_local().data_ptr() for name, tensor in state["model"].items()}, "in place"
    print("READ", reader.read_bytes, reader.exchanged["memory"], reader.exchanged["group"], flush=True)
    # As dcp.load has it.
    other = made(1, zero=True)
    dcp.load(other, storage_reader=StorageReader(at, share=True))
    compare(other, 1)
# Some ranks, and parameters that learn, strided and of another type.
some = dist.new_group([1, 2])
if rank in (1, 2):
    alone = {"plain": {"plain": torch.nn.Parameter(torch.zeros(100, 700).t())}, "step": 0}
    load_state_dict_together(alone, folder, process_group=some)
    assert torch.equal(alone["plain"]["plain"], PLAIN["plain"]) and alone["step"] == 17
wide = {"plain": {"plain": torch.zeros(700, 100, dtype=torch.float64)}}
load_state_dict_together(wide, folder)
assert torch.equal(wide["plain"]["plain"].float(), PLAIN["plain"])
# Without memory yet.
meta = {"plain": {"half": torch.empty(999, dtype=torch.bfloat16, device="meta")}}
load_state_dict_together(meta, folder)
assert torch.equal(meta["plain"]["half"], PLAIN["half"])
# Ranks that want different things.
mine = {"plain": {("plain", "half", "scalar")[rank % 3]: torch.zeros_like(PLAIN[("plain", "half", "scalar")[rank % 3]])}}
load_state_dict_together(mine, folder)
assert all(torch.equal(tensor, PLAIN[name]) for name, tensor in mine["plain"].items())
"""


def test_four_ranks_restore_what_two_wrote_and_read_it_once(tmp_path: Path):
    ranks(tmp_path, 2, SAVE, tmp_path / "saved")
    done = ranks(tmp_path, 4, RESTORE, tmp_path / "saved")
    got = [[int(word) for word in line.split()[1:]] for rank in done for line in rank.stdout.splitlines() if line.startswith("READ")]
    size = 4 * (2 * 400 * 500 + 300 * 1000 + 21 + 70_000 + 4800 + 10 + 1 + 5) + 2 * 999 + 8 * 300
    assert len(got) == 8 and all(group == 0 for *_, group in got), got
    # Each rank reads the two objects and the heads of the chunks that it has a part of by itself, and by columns what lies between.
    assert 2 * size <= sum(read for read, *_ in got) <= 2 * (size + 4 * 40 * 2048 + 3 * 4 * 400 * 500), got
    assert sum(memory for _, memory, _ in got) > 0, got


FAILS = STATE + r"""
def fails(what, act, kinds):
    started = time.monotonic()
    try:
        act()
    except kinds as error:
        print("ENDED", what, type(error).__name__, f"{time.monotonic() - started:.0f}", flush=True)
        return
    raise SystemExit(f"{what}: rank {rank} loaded")
def untouched(state):
    assert all(not tensor.any() for tensor in state["plain"].values()) and state["step"] == 0
    assert all(not state["model"][name].to_local().any() for name in SHAPES)
def one(what, act, kind):
    fails(what, act, kind if rank == 1 else straightway.Cancelled)
state = made(1, zero=True)
one("gone", lambda: load_state_dict_together(state, folder + ("-gone" if rank == 1 else ""), timeout=20), straightway.NotFound)
untouched(state)
if rank == 1:
    state["model"]["more"] = torch.zeros(3)
one("key", lambda: load_state_dict_together(state, folder, timeout=20), RuntimeError)
untouched(state)
load_state_dict_together(state, folder, strict=False)
compare(state, 1)
assert rank != 1 or not state["model"].pop("more").any()
state = made(1, zero=True)
if rank == 1:
    state["plain"]["plain"] = torch.zeros(700, 99)
one("shape", lambda: load_state_dict_together(state, folder, timeout=20), ValueError)
untouched(state)
read = StorageReader._read
def dies(self, items, planner):
    if rank == 1:
        os._exit(0)
    read(self, items, planner)
StorageReader._read = dies
one("death", lambda: load_state_dict_together(made(1, zero=True), folder, timeout=10), RuntimeError)
os._exit(0)
"""


def test_what_one_rank_cannot_plan_touches_no_tensor_of_any(tmp_path: Path):
    ranks(tmp_path, 2, SAVE, tmp_path / "saved")
    done = ranks(tmp_path, 2, FAILS, tmp_path / "saved", check=False)
    assert all(process.returncode == 0 for process in done), "\n".join(process.stderr[-3000:] for process in done)
    ended = [line.split()[1:] for process in done for line in process.stdout.splitlines() if line.startswith("ENDED")]
    for what, own in [("gone", "NotFound"), ("key", "RuntimeError"), ("shape", "ValueError")]:
        assert sorted(kind for case, kind, _ in ended if case == what) == sorted([own, "Cancelled"]), (what, ended)
    assert [kind for case, kind, _ in ended if case == "death"] == ["Cancelled"], ended
    assert max(int(seconds) for *_, seconds in ended) <= 25, ended


def test_one_process_restores_in_place(tmp_path: Path):
    saved = {"w": torch.randn(300, 200), "deep": {"b": torch.arange(7)}, "step": 3}
    dcp.save(saved, checkpoint_id=tmp_path / "dcp", no_dist=True)
    straightway.torch.save_file({"w": saved["w"]}, tmp_path / "w.safetensors")
    wanted = {"w": torch.zeros(300, 200), "deep": {"b": torch.zeros(7, dtype=torch.int64)}, "step": 0}
    at = wanted["w"].data_ptr()
    reader = load_state_dict_together(wanted, tmp_path / "dcp")
    assert torch.equal(wanted["w"], saved["w"]) and torch.equal(wanted["deep"]["b"], saved["deep"]["b"]) and wanted["step"] == 3
    assert wanted["w"].data_ptr() == at and reader.read_bytes >= saved["w"].nbytes
    other = {"w": torch.zeros(300, 200)}
    load_state_dict_together(other, tmp_path / "w.safetensors")
    assert torch.equal(other["w"], saved["w"])
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state_dict_together({"v": torch.zeros(1)}, tmp_path / "dcp")
    with pytest.raises(ValueError, match="Size mismatch"):
        load_state_dict_together({"w": torch.zeros(2)}, tmp_path / "w.safetensors")


def blob(tensor: torch.Tensor) -> bytearray:
    content = io.BytesIO()
    torch.save(tensor, content)
    return bytearray(content.getvalue())


def test_a_head_that_was_seen_is_believed_only_for_what_goes_on_behind_it():
    locator, head = _blob.Locator(), _blob.HEAD_BYTES
    first, second = blob(torch.arange(4000.0)), blob(torch.arange(4000.0) * 3)
    where = locator.locate(memoryview(first)[:head], len(first))
    assert where == locator.locate(memoryview(second)[:head], len(second)) == _blob.Locator().locate(memoryview(second)[:head], len(second))
    # Of other elements, of fewer bytes than the head says, with a descriptor behind the place, and too short to be the same.
    ints, small = blob(torch.arange(4000, dtype=torch.int32)), blob(torch.arange(10.0))
    for content, length in [(ints, len(ints)), (first, where.at + 15_999), (small, len(small))]:
        seen = memoryview(content)[: min(head, length)]
        assert locator.locate(seen, length) == _blob.Locator().locate(seen, length), length
    assert locator.locate(memoryview(ints)[:head], len(ints)).dtype == torch.int32
    assert locator.locate(memoryview(first)[:head], where.at + 15_999) is None
    ended = bytearray(first)
    tail = struct.pack("<4sIII", b"PK\x07\x08", zlib.crc32(ended[where.at : where.at + 64]), 64, 64)
    ended[where.at + 64 : where.at + 80] = tail
    assert locator.locate(memoryview(ended)[:head], len(ended)) == _blob.Locator().locate(memoryview(ended)[:head], len(ended))
