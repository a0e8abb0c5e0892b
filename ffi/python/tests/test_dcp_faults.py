"""torch.distributed.checkpoint with ranks that are interrupted or killed, and what a shared load takes of memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import straightway
from _ranks import ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed.checkpoint as dcp  # noqa: E402

from straightway.torch import _share  # noqa: E402
from straightway.torch.checkpoint import StorageReader, StorageWriter  # noqa: E402


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# World 4: Ctrl-C at rank 2 while it reads, then while it waits for what others read.
INTERRUPTED = r"""
import signal, threading
from straightway.torch import _share
_share.WAVE_BYTES = 1
def state(fill):
    return {f"t{n}": torch.full((1000,), fill + n) for n in range(100)}
dcp.save(state(2.0), storage_writer=StorageWriter(folder))
def press():
    os.kill(os.getpid(), signal.SIGINT)
class WhileItReads(StorageReader):
    waves = 0
    def _read(self, items, planner):
        WhileItReads.waves += 1
        if rank == 2 and WhileItReads.waves == 5:
            press()
            time.sleep(50)
        super()._read(items, planner)
class WhileItWaits(StorageReader):
    waves = 0
    def _read(self, items, planner):
        WhileItWaits.waves += 1
        if WhileItWaits.waves == 20:
            if rank == 0:
                time.sleep(3)
            if rank == 2:
                threading.Timer(1, press).start()
        super()._read(items, planner)
def good():
    loaded = state(1.0)
    dcp.load(loaded, storage_reader=StorageReader(folder, share=True))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state(2.0).items())
good()
for reader in (WhileItReads, WhileItWaits):
    dist.barrier()
    loaded = state(1.0)
    start = time.monotonic()
    try:
        dcp.load(loaded, storage_reader=reader(folder, share=True, timeout=40))
    except BaseException as error:
        took = time.monotonic() - start
        found = {of: failure[0] for of, failure in error.failures.items()}
        assert type(found.pop(2)) is KeyboardInterrupt, error
        assert sorted(found) == [0, 1, 3], error
        assert all(other.kind == "cancelled" and "rank 2: KeyboardInterrupt" in str(other) for other in found.values()), found
        assert not [thread for thread in threading.enumerate() if thread.name == "straightway-pull"]
        # Nothing writes into the tensors any more.
        for tensor in loaded.values():
            tensor.zero_()
        time.sleep(0.3)
        assert not any(tensor.any() for tensor in loaded.values())
        print("ENDED", reader.__name__, took, flush=True)
dist.barrier()
good()
print("good", flush=True)
dist.destroy_process_group()
"""


def test_an_interrupt_of_one_rank_ends_a_shared_load_on_all(tmp_path: Path):
    done = ranks(tmp_path, 4, INTERRUPTED, tmp_path / "checkpoint")
    for process in done:
        took = {line.split()[1]: float(line.split()[2]) for line in process.stdout.splitlines() if line.startswith("ENDED")}
        assert took.keys() == {"WhileItReads", "WhileItWaits"} and max(took.values()) < 10, process.stdout
        assert "good" in process.stdout


def test_ranks_get_as_many_bytes_to_read_whatever_their_types(tmp_path: Path):
    wide = {f"wide {n}": torch.zeros(6000, dtype=torch.float64) for n in range(4)}
    narrow = {f"narrow {n}": torch.zeros(8000, dtype=torch.int8) for n in range(24)}
    dcp.save({**wide, **narrow}, storage_writer=StorageWriter(tmp_path), no_dist=True)
    reader = StorageReader(tmp_path)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    planner = dcp.DefaultLoadPlanner()
    planner.set_up_planner({**wide, **narrow}, metadata, True)
    plan = planner.create_local_plan()
    shared = StorageReader(tmp_path, share=True)
    shared.set_up_storage_reader(metadata, True)
    # Three of each type are two for one rank: by elements the wide ones would come last and as they fall.
    plans = shared.prepare_global_plan([plan, plan, plan])
    sizes = [0, 0, 0]
    for rank, part in enumerate(plans):
        for position, item in enumerate(part.items):
            if position not in part.storage_data.received:
                sizes[rank] += item.lengths.numel() * (8 if item.storage_index.fqn.startswith("wide") else 1)
    assert sum(sizes) == 4 * 48_000 + 24 * 8000
    assert max(sizes) - min(sizes) <= 8000, sizes


# World 2: destinations of one rank are strided, then of both.
STRIDED = r"""
from straightway.torch import _share, checkpoint
_share.COPY_BYTES = checkpoint.STAGING_BYTES = checkpoint.STAGED_PIECE_BYTES = 1 << 20
saved = {f"t{n}": torch.randn((1024, 1024), generator=torch.Generator().manual_seed(n)) for n in range(32)}
dcp.save(saved if rank == 0 else {}, storage_writer=StorageWriter(folder))
def fact(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))
def load(strided):
    loaded = {name: torch.ones(1024, 1024).T if strided else torch.ones(1024, 1024) for name in saved}
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = fact("VmRSS")
    reader = StorageReader(folder, share=True)
    dcp.load(loaded, storage_reader=reader)
    grown = fact("VmHWM") - before
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    return grown, reader.exchanged
load(True)
for strided in (rank == 1, True):
    grown, exchanged = load(strided)
    print("GROWN", grown, exchanged["memory"], exchanged["group"], flush=True)
dist.destroy_process_group()
"""


def test_what_is_received_into_strided_tensors_goes_through_little_memory(tmp_path: Path):
    done = ranks(tmp_path, 2, STRIDED, tmp_path / "checkpoint")
    rows = [[list(map(int, line.split()[1:])) for line in process.stdout.splitlines() if line.startswith("GROWN")] for process in done]
    half = 16 << 22
    # Out of the memory of the rank whose tensors are dense, and by the group out of strided ones.
    assert [row[1:] for row in rows[0]] == [[0, half], [0, half]] and [row[1:] for row in rows[1]] == [[half, 0], [0, half]], rows
    # Far below the 64 MiB that are received.
    assert max(row[0] for rank in rows for row in rank) < 24 << 20, rows


def test_parts_of_a_tensor_cover_it_in_order(monkeypatch):
    monkeypatch.setattr(_share, "COPY_BYTES", 64)
    for shape in [(), (0, 4), (5,), (40,), (3, 7, 5), (2, 1, 30)]:
        tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        parts = list(_share._parts(tensor))
        assert torch.equal(torch.cat([part.reshape(-1) for part in parts] or [torch.zeros(0)]), tensor.reshape(-1))
        assert all(part.numel() * 4 <= 64 for part in parts)


KILLED = r"""
import signal
from datetime import timedelta
group = dist.new_group(list(range(world)), timeout=timedelta(seconds=10))
dcp.save(sharded(whole(1)), storage_writer=StorageWriter(folder), process_group=group)
class Killed(StorageWriter):
    def write_data(self, plan, planner):
        if rank == VICTIM and WHEN == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = super().write_data(plan, planner)
        if rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
start = time.monotonic()
try:
    dcp.save(sharded(whole(2)), storage_writer=Killed(folder), process_group=group)
except BaseException as error:
    print("ENDED", time.monotonic() - start, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("victim", [2, 0])
def test_a_rank_that_is_killed_in_a_save_ends_it_on_all_and_leaves_the_old_checkpoint(tmp_path: Path, victim: int, when: str):
    runs = tmp_path / "runs"
    runs.mkdir()
    folder = runs / "checkpoint"
    body = KILLED.replace("VICTIM", str(victim)).replace("WHEN", repr(when))
    done = ranks(tmp_path, 4, body, folder, check=False)
    report = "\n".join(process.stdout + process.stderr[-2000:] for process in done)
    assert [process.returncode for process in done] == [-9 if rank == victim else 0 for rank in range(4)], report
    for rank, process in enumerate(done):
        took = [float(line.split()[1]) for line in process.stdout.splitlines() if line.startswith("ENDED")]
        # The time limit of the process group, and some for a loaded machine.
        assert rank == victim or (took and took[0] < 20), report
    loaded = straightway.load(folder, framework="torch", verify="require")
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(loaded["rows"], torch.randn((400, 500), generator=generator))
    # The rank that began the save removes it; if that one was killed, the next save of the name does.
    left = {entry.name for entry in runs.iterdir()} - {"checkpoint"}
    assert any(name.endswith("pending") for name in left) if victim == 0 else not left, left
    dcp.save({"a": torch.ones(3)}, storage_writer=StorageWriter(folder), no_dist=True)
    assert {entry.name for entry in runs.iterdir()} == {"checkpoint"}
    loaded = {"a": torch.zeros(3)}
    dcp.load(loaded, storage_reader=StorageReader(folder, verify="require"), no_dist=True)
    assert loaded["a"].sum() == 3
