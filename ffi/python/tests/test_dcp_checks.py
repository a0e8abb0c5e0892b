"""torch.distributed.checkpoint: what a load compares with the checksums beside the checkpoint, alone and with ranks."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

import pytest

import straightway
from _ranks import failures, ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch.distributed.checkpoint as dcp  # noqa: E402

from straightway.torch import checkpoint  # noqa: E402
from straightway.torch.checkpoint import StorageReader, StorageWriter  # noqa: E402

CHUNK = 4 << 20
SUMS = "straightway.checksums.json"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tensors(fill: float) -> dict:
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(2600, 1000, generator=generator) * fill
    small = {f"small {n}": torch.full((n % 40 + 1,), fill + n) for n in range(300)}
    return {"large": large, **small, "step": int(fill), "sparse": torch.eye(5).to_sparse() * fill}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    dcp.save(tensors(2.0), storage_writer=StorageWriter(folder), no_dist=True)
    return folder


def load(folder: Path, wanted: dict | None = None, **options) -> tuple[dict, StorageReader]:
    reader = StorageReader(folder, **options)
    loaded = tensors(1.0) if wanted is None else wanted
    dcp.load(loaded, storage_reader=reader, no_dist=True)
    return loaded, reader


def fails(kind: type, text: str, act) -> BaseException:
    with pytest.raises(BaseException) as caught:
        act()
    error = failures(caught.value)[0]
    assert isinstance(error, kind) and text in str(error), repr(error)
    return error


def flip(file: Path, at: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 16]))


def data(folder: Path) -> Path:
    [file] = folder.glob("*.distcp")
    return file


def test_a_whole_load_compares_every_byte_and_reads_little_for_it(saved: Path):
    size = data(saved).stat().st_size
    for verify in ["auto", "require"]:
        loaded, reader = load(saved, verify=verify)
        assert torch.equal(loaded["large"], tensors(2.0)["large"]) and loaded["step"] == 2
        assert (reader.verification, reader.verified_bytes, reader.unverified_bytes) == ("compared", size, 0)
        assert reader.by_torch == ["sparse"]
        # Heads; what lies between small tensors, once more with them where a chunk has many.
        assert reader.read_bytes <= size + 302 * 2048 + 2 * CHUNK
    loaded, reader = load(saved, verify="off")
    assert (reader.verification, reader.verified_bytes) == ("off", 0) and reader.unverified_bytes > 0


def test_without_checksums_a_load_goes_on_unless_they_are_required(saved: Path):
    text = (saved / SUMS).read_text()
    os.remove(saved / SUMS)
    loaded, reader = load(saved)
    assert (reader.verification, reader.verified_bytes) == ("none", 0) and reader.unverified_bytes >= 4 * 2600 * 1000
    fails(straightway.NotFound, SUMS, lambda: load(saved, verify="require"))
    (saved / SUMS).write_text(text[: len(text) // 2])
    fails(straightway.BadFormat, SUMS, lambda: load(saved))
    load(saved, verify="off")
    # One that does not know the file.
    (saved / SUMS).write_text('{ "format": "straightway-checksums", "version": 1, "chunk_bytes": 4194304, "files": {} }')
    assert load(saved)[1].verified_bytes == 0
    fails(straightway.NotFound, "__0_0.distcp", lambda: load(saved, verify="require"))
    with pytest.raises(straightway.ApiMisuse, match="auto, off or require"):
        StorageReader(saved, verify="yes")


def places(folder: Path) -> dict[str, int]:
    """A byte of each kind of place in the file."""
    metadata = StorageReader(folder).read_metadata()
    found = {index.fqn: info for index, info in metadata.storage_data.items()}
    large, object_, strange = found["large"], found["step"], found["sparse"]
    return {
        "first byte of a tensor": 4096,
        "end of a chunk": CHUNK - 1,
        "middle of a tensor": CHUNK + 77,
        "head": large.offset + 200,
        "tail of a blob": large.offset + large.length - 10,
        "small tensor": found["small 39"].offset + found["small 39"].length // 2,
        "object": object_.offset + object_.length // 2,
        "what torch reads": strange.offset + strange.length // 2,
        "last byte": data(folder).stat().st_size - 1,
    }


def test_a_flipped_bit_anywhere_is_an_error_that_names_the_file(saved: Path):
    for what, at in places(saved).items():
        flip(data(saved), at)
        for verify in ["auto", "require"]:
            error = fails(straightway.ChecksumMismatch, "__0_0.distcp", lambda: load(saved, verify=verify))
            assert error.location == "__0_0.distcp" and error.range[0] == at // CHUNK * CHUNK, what
        flip(data(saved), at)
    flip(data(saved), CHUNK + 77)
    load(saved, verify="off")
    # By way of staging: another type, and strided.
    for wanted in [torch.zeros(2600, 1000, dtype=torch.float64), torch.zeros(1000, 2600).T]:
        fails(straightway.ChecksumMismatch, "__0_0.distcp", lambda: load(saved, {"large": wanted}))
    with open(data(saved), "ab") as file:
        file.write(b"\0")
    fails(straightway.ChecksumMismatch, "__0_0.distcp", lambda: load(saved))


class Rows(dcp.DefaultLoadPlanner):
    """Wants some rows of `large`."""

    def __init__(self, first: int, count: int):
        super().__init__()
        self.first, self.count = first, count

    def create_local_plan(self):
        plan = super().create_local_plan()
        cut = {"storage_offsets": torch.Size([self.first, 0]), "lengths": torch.Size([self.count, 1000])}
        return dataclasses.replace(plan, items=[dataclasses.replace(item, **cut) for item in plan.items])

    def resolve_tensor(self, item):
        return self.state_dict[item.dest_index.fqn][: self.count]


def test_a_slice_is_compared_where_that_is_cheap_or_required(saved: Path):
    def some(first: int, count: int, verify: str) -> StorageReader:
        reader = StorageReader(saved, verify=verify)
        dcp.load({"large": torch.zeros(2600, 1000)}, storage_reader=reader, planner=Rows(first, count), no_dist=True)
        return reader

    reader = some(300, 10, "auto")
    assert (reader.verified_bytes, reader.unverified_bytes) == (0, 40_000) and reader.read_bytes == 40_000 + 2048
    reader = some(300, 10, "require")
    assert (reader.verified_bytes, reader.unverified_bytes) == (CHUNK, 0) and reader.read_bytes > CHUNK
    # Most of a chunk: the rest is read.
    reader = some(0, 900, "auto")
    assert (reader.verified_bytes, reader.unverified_bytes) == (CHUNK, 0)
    flip(data(saved), 5000)
    some(300, 10, "auto")
    fails(straightway.ChecksumMismatch, "__0_0.distcp", lambda: some(300, 10, "require"))


def test_ten_thousand_small_tensors_are_compared_with_few_reads(tmp_path: Path):
    wanted = {f"t{n}": torch.full((n % 13 + 1,), float(n)) for n in range(10_000)}
    dcp.save(wanted, storage_writer=StorageWriter(tmp_path), no_dist=True)
    size = data(tmp_path).stat().st_size
    _, reader = load(tmp_path, {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}, verify="require")
    assert (reader.verified_bytes, reader.unverified_bytes) == (size, 0)
    # One read of a head and one of the bytes each, and one for the rest of each chunk.
    assert sum(way.operations for way in reader.ways) <= 20_000 + 2 * (size // CHUNK + 1)


def test_load_takes_verify_and_tells_how_far(saved: Path):
    wanted = {"large": torch.ones(3000, 1000)}
    straightway.save(wanted, saved.parent / "plain")
    folder = saved.parent / "plain"
    size = (folder / "model.safetensors").stat().st_size
    report = straightway.load(folder).report
    assert report.verification == "compared" and [(f.verified_bytes, f.unverified_bytes) for f in report.files] == [(size, 0)]
    flip(folder / "model.safetensors", CHUNK + 9)
    for verify in ["auto", "require"]:
        with pytest.raises(straightway.ChecksumMismatch, match="model.safetensors"):
            straightway.load(folder, verify=verify)
    report = straightway.load_file(folder / "model.safetensors", verify="off").report
    assert report.verification == "off" and report.files[0].verified_bytes == 0
    os.remove(folder / SUMS)
    assert straightway.load(folder).report.verification == "none"
    with pytest.raises(straightway.NotFound, match=SUMS):
        straightway.load(folder, verify="require")
    with pytest.raises(straightway.ApiMisuse, match="auto, off or require"):
        straightway.load(folder, verify="always")


def test_memory_for_what_is_compared_beside_a_load_is_bounded(saved: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCRATCH_BYTES", 64)
    _, reader = load(saved, verify="require")
    assert reader.unverified_bytes == 0 and reader.by_torch == ["sparse"]


# World 4: large tensors in shards and one on all ranks, so that most chunks have bytes that different ranks read.
TOGETHER = r"""
import glob
def state(seed):
    generator = torch.Generator().manual_seed(seed)
    full = {f"t{n}": torch.randn((1500, 700), generator=generator) for n in range(5)}
    return full
def on_all(tensors):
    return {name: distribute_tensor(tensor, mesh, [Replicate()]) for name, tensor in tensors.items()}
full = state(1)
dcp.save(full if rank == 0 else {}, storage_writer=StorageWriter(folder))
def load(share, verify="auto"):
    reader = StorageReader(folder, share=share, verify=verify, timeout=20)
    loaded = on_all(state(2))
    dcp.load(loaded, storage_reader=reader)
    for name, tensor in full.items():
        assert torch.equal(loaded[name].to_local(), tensor), name
    return reader
for share in (False, True):
    for verify in ("auto", "require"):
        reader = load(share, verify)
        print("DONE", share, verify, reader.verified_bytes, reader.unverified_bytes, reader.read_bytes, flush=True)
dist.barrier()
file = folder + "/__0_0.distcp"
def flip(at):
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
# In a chunk of one tensor; in one that two ranks see together; in a head, which nobody reads but to compare.
for at in (5 << 20, (4 << 20) + 100_000, 60):
    for share in (False, True):
        dist.barrier()
        if rank == 0:
            flip(at)
        dist.barrier()
        try:
            load(share)
        except BaseException as error:
            found = {of: failure[0] for of, failure in error.failures.items()}
            kinds = sorted((of, failure.kind, "__0_0.distcp" in str(failure)) for of, failure in found.items())
            print("FLIPPED", share, kinds, flush=True)
        dist.barrier()
        if rank == 0:
            flip(at)
dist.barrier()
load(True)
# No checksums at one rank's first look: all agree still.
dist.barrier()
if rank == 0:
    os.remove(folder + "/straightway.checksums.json")
dist.barrier()
assert load(True).verification == "none"
try:
    load(True, "require")
except BaseException as error:
    kinds = sorted({failure[0].kind for failure in error.failures.values()})
    print("MISSING", kinds, flush=True)
dist.destroy_process_group()
"""


def test_ranks_compare_each_chunk_once_and_all_are_told_of_damage(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    done = ranks(tmp_path, 4, TOGETHER, folder)
    report = "\n".join(process.stdout + process.stderr[-2000:] for process in done)
    size = data(folder).stat().st_size
    lines = [line.split() for process in done for line in process.stdout.splitlines() if line.startswith("DONE")]
    for share in ["False", "True"]:
        for verify in ["auto", "require"]:
            rows = [[int(number) for number in line[3:]] for line in lines if line[1:3] == [share, verify]]
            verified, unverified, read = map(sum, zip(*rows))
            # Alone each rank compares all of it, together they do it once.
            assert (verified, unverified) == (size if share == "True" else 4 * size, 0), report
            assert read <= (size if share == "True" else 4 * size) + 4 * 5 * 2048, report
    told = [line for process in done for line in process.stdout.splitlines() if line.startswith("FLIPPED")]
    all_ranks = str([(rank, "checksum_mismatch", True) for rank in range(4)])
    assert len(told) == 4 * 6 and all(line.partition(" [")[2] == all_ranks[1:] for line in told), report
    assert report.count("MISSING ['not_found']") == 4, report
