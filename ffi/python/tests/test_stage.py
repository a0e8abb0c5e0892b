"""The copy of a state dict that `async_save` saves from."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from _ranks import ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import straightway  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from straightway.torch.checkpoint import StorageReader, StorageWriter, drop_staging  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_kept():
    # An error of a test before holds its copies in a cycle.
    gc.collect()
    drop_staging()
    yield
    drop_staging()


def state():
    return {
        "model": {
            "weight": torch.arange(60, dtype=torch.float32).reshape(6, 10),
            "turned": torch.arange(60, dtype=torch.float64).reshape(6, 10).T,
            "half": torch.nn.Parameter(torch.ones(7, dtype=torch.bfloat16)),
            "eighth": torch.ones(5).to(torch.float8_e4m3fn),
            "complex": torch.arange(4).to(torch.complex64).conj(),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0, 4),
            "flags": torch.tensor([True, False]),
        },
        "steps": [1, (2.5, torch.tensor([9]))],
        "name": "run",
        "none": None,
    }


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def bytes_of(tensor):
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("keep", [False, True])
def test_a_copy_has_the_values_of_its_time_in_memory_of_its_own(tmp_path: Path, keep):
    writer, original = StorageWriter(tmp_path / "c", cache_staged_state_dict=keep), state()
    staged = writer.stage(original)
    assert writer.stall > 0
    for tensor in tensors(original):
        tensor.detach().zero_()
    for then, now in zip(tensors(state()), tensors(staged), strict=True):
        assert (now.dtype, now.shape, now.device.type) == (then.dtype, then.shape, "cpu")
        assert not now.requires_grad and torch.equal(bytes_of(then), bytes_of(now))
    assert staged["name"] == "run" and staged["none"] is None and staged["steps"][0] == 1 and staged["steps"][1][0] == 2.5


def test_tensors_that_are_saved_as_objects_take_their_own_bytes_only(tmp_path: Path):
    # What hangs in a tuple is saved by `torch.save`, and so are elements that the saver does not write as they are.
    original = {"large": torch.ones(1 << 20), "random": (torch.ones(100), 7), "wide": torch.ones(100, dtype=torch.complex128)}
    dcp.save(original, storage_writer=dcp.FileSystemWriter(tmp_path / "theirs"), no_dist=True)
    dcp.async_save(original, storage_writer=StorageWriter(tmp_path / "ours"), no_dist=True).result()
    theirs, ours = (sum(file.stat().st_size for file in (tmp_path / name).glob("*.distcp")) for name in ("theirs", "ours"))
    assert ours < theirs + (64 << 10), (ours, theirs)
    loaded = {"large": torch.zeros(1 << 20), "random": None, "wide": torch.zeros(100, dtype=torch.complex128)}
    dcp.load(loaded, storage_reader=StorageReader(tmp_path / "ours"), no_dist=True)
    assert loaded["random"][1] == 7 and torch.equal(loaded["random"][0], torch.ones(100))
    assert torch.equal(loaded["wide"], original["wide"]) and torch.equal(loaded["large"], original["large"])


def test_kept_memory_that_a_save_still_reads_is_left_alone(tmp_path: Path):
    writer = StorageWriter(tmp_path / "c", cache_staged_state_dict=True)
    first = writer.stage({"a": torch.ones(1000)})
    second = writer.stage({"a": torch.full((1000,), 2.0)})
    assert torch.equal(first["a"], torch.ones(1000)) and torch.equal(second["a"], torch.full((1000,), 2.0))


def test_kept_memory_is_used_again_and_grows(tmp_path: Path):
    kept, fresh = StorageWriter(tmp_path / "k", cache_staged_state_dict=True), StorageWriter(tmp_path / "f")
    small, large = {"a": torch.ones(100)}, {"a": torch.full((100_000,), 2.0)}
    place = kept.stage(small)["a"].data_ptr()
    assert kept.stage(small)["a"].data_ptr() == place
    grown = kept.stage(large)["a"]
    place = grown.data_ptr()
    assert torch.equal(grown, large["a"])
    del grown
    assert kept.stage(small)["a"].data_ptr() == place
    assert drop_staging() >= large["a"].nbytes and drop_staging() == 0
    one, other = fresh.stage(small), fresh.stage(small)
    assert one["a"].data_ptr() != other["a"].data_ptr()
    del one, other
    assert drop_staging() == 0


def places_of(writer):
    """Where the tensors `a` of its copies come to lie."""
    places, stage = [], writer.stage

    def watched(state_dict):
        staged = stage(state_dict)
        places.append(staged["a"].data_ptr())
        return staged

    writer.stage = watched
    return places


def test_a_save_that_is_through_leaves_its_memory_to_the_next_writer_at_once(tmp_path: Path):
    # The thread of a save holds its copy for a while after the future is done.
    original, places, failed = {"a": torch.ones(1 << 20)}, [], []
    for step in range(20):
        writer = StorageWriter(tmp_path / str(step), cache_staged_state_dict=True)
        seen = places_of(writer)
        future = dcp.async_save(original, storage_writer=writer, no_dist=True)
        future.result()
        places += seen
    assert len(set(places)) == 1, places
    # One that fails does so too, though its error keeps the copy.
    writer = StorageWriter(tmp_path / "gone", cache_staged_state_dict=True)
    seen = places_of(writer)

    class Planner(dcp.DefaultSavePlanner):
        def resolve_data(self, item):
            failed.append(super().resolve_data(item))
            if item.index.fqn == "b":
                raise RuntimeError("no")
            return failed[-1]

    with pytest.raises(CheckpointException):
        dcp.async_save({"a": original["a"], "b": torch.ones(3)}, storage_writer=writer, planner=Planner(), no_dist=True).result()
    assert len(failed) == 2 and len(seen) == 1
    again = StorageWriter(tmp_path / "again", cache_staged_state_dict=True).stage({"a": original["a"]})
    assert [again["a"].data_ptr()] == seen and not (tmp_path / "gone").exists()


def test_memory_made_ahead_is_what_the_next_copy_takes(tmp_path: Path):
    original = {"a": torch.ones(3 << 20), "b": [torch.ones(5)]}
    once = StorageWriter(tmp_path / "c")
    once.prepare(original)
    place = once.stage(original)["a"].data_ptr()
    assert drop_staging() == 0, "it serves one copy"
    keeping = StorageWriter(tmp_path / "c", cache_staged_state_dict=True)
    keeping.prepare(original)
    place = keeping.stage(original)["a"].data_ptr()
    keeping.prepare(original)
    assert StorageWriter(tmp_path / "d", cache_staged_state_dict=True).stage(original)["a"].data_ptr() == place
    assert drop_staging() >= 12 << 20
    # What only torch copies needs no memory of ours.
    once.prepare({"a": torch.eye(3).to_sparse()})
    assert drop_staging() == 0


def test_a_state_beyond_the_budget_fails_with_a_remedy_and_copies_nothing(tmp_path: Path):
    original = {"a": torch.ones(1 << 20)}
    writer = StorageWriter(tmp_path / "c", staging_bytes=(4 << 20) - 1, cache_staged_state_dict=True)
    with pytest.raises(straightway.ResourceLimit, match="staging_bytes"):
        writer.prepare(original)
    with pytest.raises(CheckpointException) as caught:
        dcp.async_save(original, storage_writer=writer, no_dist=True).result()
    [failure] = caught.value.failures.values()
    assert isinstance(failure[0], straightway.ResourceLimit) and "dcp.save" in str(failure[0])
    assert drop_staging() == 0 and not (tmp_path / "c").exists()
    # The next one is another matter.
    small = {"a": torch.ones(1 << 18)}
    dcp.async_save(small, storage_writer=writer, no_dist=True).result()
    loaded = {"a": torch.zeros(1 << 18)}
    dcp.load(loaded, storage_reader=StorageReader(tmp_path / "c"), no_dist=True)
    assert torch.equal(loaded["a"], small["a"])
    # A copy that is in use counts.
    narrow = StorageWriter(tmp_path / "d", staging_bytes=6 << 20)
    first = narrow.stage(original)
    assert narrow.stage(original) is original and first["a"] is not original["a"]
    with pytest.raises(straightway.ResourceLimit, match="still in use has 4194304"):
        narrow.set_up_storage_writer(True)
    del first
    assert narrow.stage(original) is not original
    # torch's stager has no budget.
    sparse = {"a": torch.eye(3).to_sparse()}
    assert narrow.stage(sparse) is sparse
    with pytest.raises(straightway.Unsupported, match="staging_bytes"):
        narrow.set_up_storage_writer(True)


REFUSED = """
from torch.distributed.checkpoint.api import CheckpointException
import straightway
state = {"a": torch.ones(1 << 20), "mine": {f"of {rank}": torch.ones(5)}}
started = time.monotonic()
try:
    writer = StorageWriter(folder, staging_bytes=1000 if rank == 1 else None)
    dcp.async_save(state, storage_writer=writer).result()
except CheckpointException as error:
    [(failed, (cause, _))] = error.failures.items()
    print("REFUSED", failed, type(cause).__name__, time.monotonic() - started < 20)
writer = StorageWriter(folder, staging_bytes=8 << 20)
dcp.async_save(state, storage_writer=writer).result()
dist.barrier()
loaded = {"a": torch.zeros(1 << 20), "mine": {f"of {rank}": torch.zeros(5)}}
dcp.load(loaded, storage_reader=StorageReader(folder))
assert torch.equal(loaded["a"], state["a"]) and torch.equal(loaded["mine"][f"of {rank}"], torch.ones(5))
"""


def test_a_rank_that_may_not_stage_ends_the_save_on_all(tmp_path: Path):
    done = ranks(tmp_path, 3, REFUSED, tmp_path / "c")
    assert [line for process in done for line in process.stdout.splitlines()] == ["REFUSED 1 ResourceLimit True"] * 3


def test_what_only_torch_can_copy_torch_copies(tmp_path: Path):
    sparse = {"a": torch.eye(3).to_sparse()}
    theirs, ours = dcp.FileSystemWriter(tmp_path / "t"), StorageWriter(tmp_path / "o")

    def outcome(writer):
        try:
            return writer.stage(sparse)["a"].to_dense().tolist()
        except Exception as error:
            return type(error)

    assert outcome(ours) == outcome(theirs)


def test_what_cannot_be_saved_is_refused_as_torch_refuses_it(tmp_path: Path):
    with pytest.raises(ValueError, match="Unexpected value type"):
        strict = StorageWriter(tmp_path / "c")
        strict.type_check = True
        strict.stage({"a": object()})


def test_an_async_save_loads_with_the_values_of_its_call(tmp_path: Path):
    original = {"model": {"weight": torch.arange(100_000, dtype=torch.float32)}}
    writer = StorageWriter(tmp_path / "c", cache_staged_state_dict=True)
    places = set()
    stage = writer.stage

    def watched(state_dict):
        staged = stage(state_dict)
        places.add(staged["model"]["weight"].data_ptr())
        return staged

    writer.stage = watched
    for step in (1.0, 2.0, 3.0):
        original["model"]["weight"].fill_(step)
        future = dcp.async_save(original, storage_writer=writer, no_dist=True)
        original["model"]["weight"].fill_(-1)
        future.result()
        loaded = {"model": {"weight": torch.zeros(100_000)}}
        dcp.load(loaded, storage_reader=StorageReader(tmp_path / "c"), no_dist=True)
        assert torch.equal(loaded["model"]["weight"], torch.full((100_000,), step))
    assert len(places) == 1, "the memory of a save that is over serves the next one"


def test_the_device_takes_large_tensors_from_the_copy(tmp_path: Path):
    original = {str(n): torch.full((5 << 20,), n, dtype=torch.float32) for n in range(3)} | {"small": torch.ones(3)}
    writer = StorageWriter(tmp_path / "c")
    dcp.async_save(original, storage_writer=writer, no_dist=True).result()
    # Chunks of 4 MiB that lie in one tensor, which are all but those at its ends.
    assert writer.report.in_place >= 3 * (3 << 22), writer.report
    loaded = {name: torch.zeros_like(tensor) for name, tensor in original.items()}
    dcp.load(loaded, storage_reader=StorageReader(tmp_path / "c"), no_dist=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in original.items())
