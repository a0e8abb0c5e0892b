"""Datasets and the loader: content, memory, order, what goes wrong, processes."""

from __future__ import annotations

import gc
import io
import os
import pickle
import tarfile
import threading
import time
import traceback
from pathlib import Path

import pytest
from conftest import pattern

import straightway


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_tars(folder: Path, shards: int = 4, each: int = 25) -> dict[str, tuple[bytes, bytes]]:
    """Samples of WebDataset in tars: key to (image, label)."""
    folder.mkdir(exist_ok=True)
    samples = {}
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as archive:
            for number in range(each):
                key = f"{shard:03}-{number:04}"
                samples[key] = (pattern(1000 + 37 * number, shard), str(shard * each + number).encode())
                add(archive, key + ".jpg", samples[key][0])
                add(archive, key + ".cls", samples[key][1])
    return samples


@pytest.fixture
def tars(tmp_path: Path):
    return tmp_path / "tars", write_tars(tmp_path / "tars")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """Loose files of one length."""
    folder = tmp_path / "files"
    folder.mkdir()
    contents = [pattern(4000, seed) for seed in range(40)]
    for number, content in enumerate(contents):
        (folder / f"{number:03}.bin").write_bytes(content)
    return folder, contents


def test_a_scan_and_its_index_tell_the_same(tars):
    folder, samples = tars
    scanned = straightway.Dataset(folder)
    index = scanned.index(folder / "train.index.arrow")
    for dataset in (scanned, index, straightway.Dataset(str(folder / "train-{000..003}.tar"))):
        assert len(dataset) == 100 and list(dataset.keys()) == list(samples)
        assert [Path(one.uri).name for one in dataset.objects] == [f"train-{n:03}.tar" for n in range(4)]
        assert {one.format for one in dataset.objects} == {"tar"}
    assert list(index.keys(98)) == ["003-0023", "003-0024"]
    place = index.place(30)
    assert place.key == "001-0005" and place.object.endswith("train-001.tar") and set(place.fields) == {"jpg", "cls"}
    offset, length = place.fields["jpg"]
    with open(place.object, "rb") as file:
        file.seek(place.offset + offset)
        assert file.read(length) == samples["001-0005"][0]
    assert "100 samples in 4 objects" in repr(index)
    assert len(pickle.loads(pickle.dumps(index))) == 100


def test_sources_are_patterns_lists_and_formats(tars):
    folder, _ = tars
    assert len(straightway.Dataset(str(folder / "train-00[12].tar"))) == 50
    assert len(straightway.Dataset([folder / "train-003.tar", folder / "train-000.tar"])) == 50
    assert len(straightway.Dataset(folder / "train-003.tar", format="raw")) == 1
    with pytest.raises(straightway.NotFound):
        straightway.Dataset(folder / "none-*.tar")
    with pytest.raises(straightway.ApiMisuse):
        straightway.Dataset(folder, format="zip")
    with pytest.raises(straightway.ApiMisuse, match="already"):
        straightway.Dataset(folder).index(folder / "a.index.arrow").index(folder / "b.index.arrow")


def test_every_sample_comes_once_with_its_bytes_and_fields(tars):
    folder, samples = tars
    seen = {}
    with straightway.Loader(folder, 16, seed=3) as loader:
        assert loader.batches_per_epoch == 7
        for batch in loader:
            assert len(batch) == len(batch.keys) == len(batch.samples) and list(batch.datasets) == [0] * len(batch)
            for at, key in enumerate(batch.keys):
                fields = batch.fields(at)
                seen[key] = (bytes(fields["jpg"]), bytes(fields["cls"]))
                assert int(fields["cls"].tobytes()) == batch.samples[at]
        stats = loader.stats()
    assert seen == samples and list(seen) != list(samples)
    assert stats.samples == 100 and stats.batches == 7 and stats.ways and stats.read_bytes > 100_000
    assert "starved" in stats._repr_html_() and stats.ways[0].route in stats._repr_html_() and str(stats)


def test_neighbours_are_read_together_as_far_as_is_asked(tars):
    folder, _ = tars
    reads = []
    for options in ({}, {"join_bytes": 1, "gap_bytes": 0}):
        with straightway.Loader(folder, 25, shuffle=False, **options) as loader:
            assert sum(len(batch) for batch in loader) == 100
            reads.append(loader.stats().reads)
    assert reads == [4, 100]


def test_views_share_the_memory_of_the_batch_and_outlive_everything(files):
    np = pytest.importorskip("numpy")
    folder, contents = files
    loader = straightway.Loader(folder, 8, shuffle=False)
    kept = []
    for batch in loader:
        data, offsets = np.asarray(batch.data), np.asarray(batch.offsets)
        assert offsets.dtype == np.int64 and list(np.asarray(batch.lengths)) == [4000] * 8
        for at in range(len(batch)):
            view = np.asarray(batch[at])
            assert view.ctypes.data == data.ctypes.data + offsets[at]
            kept.append(np.from_dlpack(batch[at]))
        assert bytes(batch[-1]) == bytes(batch[7])
        with pytest.raises(IndexError):
            batch[8]
        with pytest.raises(IndexError):
            batch[-9]
    loader.close()
    del loader, batch, view, data
    gc.collect()
    assert [view.tobytes() for view in kept] == contents


def test_memory_of_batches_is_used_again(files):
    folder, _ = files
    with straightway.Loader(folder, 4, epochs=20, memory_bytes=1 << 20) as loader:
        assert sum(len(batch) for batch in loader) == 800
        stats = loader.stats()
    assert stats.memory_reused > 10 * stats.memory_fresh and stats.memory_held_bytes <= 1 << 20


def test_layouts(tars, files):
    np = pytest.importorskip("numpy")
    folder, contents = files
    fixed = np.concatenate([np.asarray(b.data) for b in straightway.Loader(folder, 16, shuffle=False, layout="fixed")])
    assert fixed.shape == (40, 4000) and fixed.tobytes() == b"".join(contents)
    batch = next(straightway.Loader(folder, 16, shuffle=False, layout="padded:4096"))
    assert batch.data.shape == (16, 4096) and bytes(batch[3]) == contents[3]
    assert np.asarray(batch.data)[:, 4000:].max() == 0
    assert np.asarray(batch.data.view("F32", [16, 1024])).shape == (16, 1024)
    with pytest.raises(straightway.OutOfRange, match="every sample must have"):
        next(straightway.Loader(tars[0], 16, layout="fixed"))


def test_rows_of_parquet_are_decoded(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"text {number % 7} of {number}" * (number % 5) for number in range(500)]
    table = pa.table({"number": list(range(500)), "text": texts})
    parquet.write_table(table, tmp_path / "part.parquet", compression="zstd", row_group_size=100)
    dataset = straightway.Dataset(tmp_path / "part.parquet", column="text")
    assert len(dataset) == 500 and dataset.place(150).row is not None
    seen = {}
    for batch in straightway.Loader(dataset, 32):
        seen.update((number, bytes(batch[at]).decode()) for at, number in enumerate(batch.samples))
    assert [seen[number] for number in range(500)] == texts


def test_operations_of_the_engine_take_the_memory_of_a_batch(files, tmp_path):
    folder, contents = files
    batch = next(straightway.Loader(folder, 4, shuffle=False))
    engine = straightway.engine()
    assert bytes(engine.to_host(batch[1])) == contents[1]
    with engine.create(tmp_path / "copy", 4000) as new:
        new.write([(0, batch[2])])
    assert (tmp_path / "copy").read_bytes() == contents[2]
    straightway.open(folder / "003.bin").read_into(batch[0])
    assert bytes(batch[0]) == contents[3]


def test_a_map_function_gets_samples_and_makes_bytes(tars):
    np = pytest.importorskip("numpy")
    folder, samples = tars

    def label(sample: straightway.Sample):
        assert sample.format == "tar" and len(sample) == len(bytes(sample)) == len(sample.data)
        fields = sample.fields()
        assert bytes(fields["jpg"]) == samples[sample.key][0]
        return np.array([int(bytes(fields["cls"])), sample.number, sample.epoch], dtype=np.int64)

    with straightway.Loader(folder, 10, layout="fixed", map=label, epochs=2) as loader:
        rows = np.concatenate([np.asarray(batch.data.view("I64", [len(batch), 3])) for batch in loader])
    assert rows.shape == (200, 3) and (rows[:, 0] == rows[:, 1]).all()
    assert sorted(rows[:100, 0]) == list(range(100)) and list(rows[:, 2]) == [0] * 100 + [1] * 100
    mapped = next(straightway.Loader(folder, 4, map=lambda sample: bytearray(b"abc")))
    assert [bytes(one) for one in mapped] == [b"abc"] * 4
    with pytest.raises(straightway.ApiMisuse):
        mapped.fields(0)


class Broken(Exception):
    pass


def break_some(sample: straightway.Sample) -> bytes:
    if sample.number % 10 == 7:
        raise Broken("on purpose")
    return sample.data


def test_what_a_map_function_raises_names_the_sample_and_keeps_its_traceback(files):
    folder, contents = files
    loader = straightway.Loader(folder, 8, shuffle=False, map=break_some)
    with pytest.raises(Broken, match="on purpose") as caught:
        next(loader)
    assert "sample 7" in caught.value.__notes__[0] and "007.bin" in caught.value.__notes__[0]
    shown = "".join(traceback.format_exception(caught.value))
    assert "in break_some" in shown and "sample 7" in shown
    # The loader goes on after it.
    with pytest.raises(Broken):
        while True:
            assert bytes(next(loader)[0]) == contents[8]
    with pytest.raises(TypeError, match="a map function returns bytes"):
        next(straightway.Loader(folder, 8, map=lambda sample: 3))


def test_bad_samples_are_left_out_as_far_as_is_allowed(files):
    folder, _ = files
    with straightway.Loader(folder, 8, map=break_some, on_bad="quarantine:8", epochs=2) as loader:
        numbers = [number for batch in loader for number in batch.samples]
        # The second epoch may have been read ahead before the first one told.
        assert loader.stats().left_out >= 4 and loader.stats().left_out + loader.stats().quarantined == 8
        bad = loader.quarantined
    assert len(numbers) == 72 and sorted(one.number for one in bad) == [7, 17, 27, 37]
    assert "on purpose" in bad[0].why and bad[0].object.endswith(".bin") and bad[0].length == 4000
    with straightway.Loader(folder, 8, map=break_some, on_bad="raise", leave_out=[one.number for one in bad]) as loader:
        assert sum(len(batch) for batch in loader) == 36
    with pytest.raises(straightway.BadFormat, match="4 samples were left out and 3 is the most") as caught:
        for _ in straightway.Loader(folder, 8, map=break_some, on_bad="skip:3"):
            pass
    assert isinstance(caught.value.__cause__, Broken)


def test_a_file_that_changed_since_it_was_indexed_is_told(files):
    folder, _ = files
    dataset = straightway.Dataset(folder)
    (folder / "005.bin").write_bytes(b"other")
    with pytest.raises(straightway.Changed) as caught:
        for _ in straightway.Loader(dataset, 8, shuffle=False):
            pass
    assert caught.value.sample == 5 and caught.value.location.endswith("005.bin") and "005.bin" in str(caught.value)


def test_checksums_of_the_index_are_compared(files):
    folder, _ = files
    dataset = straightway.Dataset(folder).index(folder.parent / "i.index.arrow", checksums=True)
    path = folder / "009.bin"
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(straightway.ChecksumMismatch) as caught:
        for _ in straightway.Loader(dataset, 8):
            pass
    assert caught.value.sample == 9


def taken(loaders: list[straightway.Loader], steps: int) -> list[int]:
    """Samples of `steps` batches of each rank, in the order of the job."""
    order = []
    for _ in range(steps):
        batches = [list(batch.samples) for loader in loaders if (batch := next(loader, None)) is not None]
        order += [row[at] for at in range(max(map(len, batches), default=0)) for row in batches if at < len(row)]
    return order


def ranks(dataset: straightway.Dataset, world: int, batch: int, state: dict | None = None) -> list[straightway.Loader]:
    made = [straightway.Loader(dataset, batch, seed=9, epochs=2, rank=n, world=world) for n in range(world)]
    for loader in made:
        if state is not None:
            loader.load_state_dict(state)
    return made


def test_a_state_goes_on_exactly_at_another_world_size(tars):
    dataset = straightway.Dataset(tars[0])
    whole = [number for batch in ranks(dataset, 1, 1)[0] for number in batch.samples]
    assert len(whole) == 200 and sorted(whole[:100]) == list(range(100)) and whole[:100] != whole[100:]
    three = ranks(dataset, 3, 5)
    first = taken(three, 4)
    states = [loader.state_dict() for loader in three]
    assert first == whole[:60] and states[0] == states[1] == states[2]
    for loader in three:
        loader.close()
        assert loader.state_dict() == states[0]
        with pytest.raises(straightway.Closed):
            next(loader)
    assert first + taken(ranks(dataset, 2, 4, states[0]), 50) == whole
    # In the same loader: back to where it was.
    again = ranks(dataset, 1, 5)[0]
    before = again.state_dict()
    begin = taken([again], 3)
    again.load_state_dict(before)
    assert taken([again], 3) == begin == whole[:15]
    with pytest.raises(straightway.ApiMisuse, match="seed differs"):
        other = straightway.Loader(dataset, 5, seed=10)
        other.load_state_dict(before)
        next(other)
    with pytest.raises(straightway.ApiMisuse):
        again.load_state_dict({"nothing": 1})


def test_epochs_end_where_they_end(files):
    loader = straightway.Loader(files[0], 16, epochs=3, drop_last=True)
    assert [[batch.epoch for batch in loader.epoch()] for _ in range(4)] == [[0, 0], [1, 1], [2, 2], []]
    endless = straightway.Loader(files[0], 16, epochs=None)
    assert [next(endless).epoch for _ in range(30)][-1] == 9


def test_tails_are_dealt_as_asked(files):
    counts = lambda tail: [sum(map(len, straightway.Loader(files[0], 4, rank=n, world=3, tail=tail))) for n in range(3)]  # noqa: E731
    assert (counts("uneven"), counts("drop"), counts("repeat")) == ([14, 13, 13], [13, 13, 13], [14, 14, 14])


def test_block_shuffle_keeps_neighbours_together(files):
    order = [n for batch in straightway.Loader(files[0], 8, shuffle="blocks:4x2") for n in batch.samples]
    assert sorted(order) == list(range(40)) and order != list(range(40))
    assert all(len({n // 4 for n in order[at : at + 8]}) == 2 for at in range(0, 40, 8))


def test_windows_of_a_block_shuffle_are_told_and_so_is_what_does_not_fit(tars):
    folder, samples = tars
    with straightway.Loader(folder, 8, shuffle="blocks:10x2") as loader:
        count = sum(map(len, loader))
        stats = loader.stats()
    assert stats.window_samples == stats.samples == count and stats.apart == [] and stats.reads < count
    with straightway.Loader(folder, 8, shuffle="blocks:10x2", block_bytes=1) as loader:
        assert sum(map(len, loader)) == count
        stats = loader.stats()
    [(why, apart)] = stats.apart
    assert (stats.windows, apart) == (0, count) and "block_bytes" in why and why in str(stats) and why in stats._repr_html_()


def test_a_mixture_takes_datasets_by_weight(tars, files):
    folder, samples = tars
    images, numbers = straightway.Dataset(folder), straightway.Dataset(files[0])
    with straightway.Loader({images: 3, numbers: 1}, 40) as loader:
        batches = [next(loader) for _ in range(5)]
        assert [sum(batch.datasets) for batch in batches] == [10] * 5 and loader.batches_per_epoch is None
        state = loader.state_dict()
        following = list(next(loader).samples)
    for batch in batches:
        for at, key in enumerate(batch.keys):
            assert key in samples if batch.datasets[at] == 0 else bytes(batch[at]) == files[1][int(key)]
    again = straightway.Loader({images: 3, numbers: 1}, 40)
    again.load_state_dict(state)
    assert list(next(again).samples) == following


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"shuffle": "rows"},
        {"layout": "square"},
        {"on_bad": "ignore"},
        {"rank": 2, "world": 2},
        {"tail": "long"},
        {"deadline": -1.0},
        {"into": "nowhere"},
        {"workers": 0},
    ],
)
def test_options_that_cannot_be_are_refused(files, options):
    with pytest.raises(ValueError):
        next(straightway.Loader(files[0], **{"batch_size": 4, **options}))


def test_threads_share_a_loader(files):
    folder, contents = files
    loader = straightway.Loader(folder, 4, epochs=25)
    seen, lock = [], threading.Lock()

    def work() -> None:
        for batch in loader:
            right = all(bytes(batch[at]) == contents[number] for at, number in enumerate(batch.samples))
            with lock:
                seen.extend(batch.samples if right else [-1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(list(range(40)) * 25)


def test_a_wait_leaves_the_interpreter_to_others(files):
    loader = straightway.Loader(files[0], 4, map=lambda sample: time.sleep(0.3) or b"", workers=1)
    thread = threading.Thread(target=lambda: next(loader), daemon=True)
    thread.start()
    turns, end = 0, time.monotonic() + 0.5
    while time.monotonic() < end:
        turns += 1
    assert turns > 1000 and thread.is_alive()
    thread.join()
    loader.close()


def test_ctrl_c_ends_a_wait_and_loses_no_batch(files, script):
    done = script(
        r"""
import os, signal, sys, threading, time, straightway
gate = threading.Event()
loader = straightway.Loader(sys.argv[1], 4, shuffle=False, map=lambda sample: gate.wait() and sample.data)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    next(loader)
except KeyboardInterrupt:
    # Without the signal it would wait for ever.
    assert time.monotonic() - start > 0.4
    gate.set()
    assert list(next(loader).samples) == [0, 1, 2, 3]
    print("interrupted")
""",
        files[0],
    )
    assert "interrupted" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("how", ["", "map=lambda sample: time.sleep(0.01) or sample.data, ", "layout='padded', "])
def test_exit_with_batches_in_flight_is_clean(files, script, how):
    start = time.monotonic()
    done = script(
        f"""
import sys, threading, time, straightway
loader = straightway.Loader(sys.argv[1], 2, {how}epochs=None)
kept = [next(loader) for _ in range(3)]
other = straightway.Loader(sys.argv[1], 2, {how}epochs=None)
def forever():
    for batch in other:
        pass
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.1)
print("bye")
""",
        files[0],
    )
    assert "bye" in done.stdout and done.stderr == "" and time.monotonic() - start < 30


def test_a_child_of_a_fork_is_told_and_can_start_anew(files, script):
    done = script(
        r"""
import os, sys, straightway
dataset = straightway.Dataset(sys.argv[1])
loader = straightway.Loader(dataset, 4, epochs=None, seed=1)
batch = next(loader)
content = bytes(batch[0])
child = os.fork()
if child == 0:
    for ask in (lambda: next(loader), loader.state_dict, loader.stats, loader.close):
        try:
            ask()
        except straightway.Forked as error:
            assert error.remedy
        else:
            os._exit(3)
    if bytes(batch[0]) != content or bytes(next(straightway.Loader(dataset, 4, seed=1))[0]) != content:
        os._exit(4)
    del batch
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert len(next(loader)) == 4
print("both")
""",
        files[0],
    )
    assert "both" in done.stdout and done.stderr == ""


def test_torch_takes_epochs_as_tensors(files):
    torch = pytest.importorskip("torch")
    from straightway.torch import DataLoader

    folder, contents = files
    loader = DataLoader(folder, 16, shuffle=True, layout="fixed", dtype=torch.int32, shape=(10, 100), seed=5)
    assert len(loader) == 3
    epochs = [torch.cat(list(loader)) for _ in range(2)]
    assert epochs[0].shape == (40, 10, 100) and not torch.equal(*epochs)
    rows = {row.numpy().tobytes() for row in epochs[1]}
    assert rows == set(contents)
    # Left in the middle: the next one is an epoch of its own.
    for tensor in loader:
        break
    assert sum(len(tensor) for tensor in loader) == 40
    ragged = next(iter(DataLoader(folder, 4)))
    assert [one.numpy().tobytes() for one in ragged] == contents[:4]
    samples = DataLoader(folder, 4, collate_fn=lambda batch: list(batch.samples))
    assert [n for batch in samples for n in batch] == list(range(40))


def test_torch_state_is_exact(files):
    pytest.importorskip("torch")
    from straightway.torch import DataLoader

    options = {"shuffle": True, "collate_fn": lambda batch: list(batch.samples)}
    loader = DataLoader(files[0], 8, **options)
    list(loader)
    for at, _ in enumerate(loader):
        if at == 1:
            break
    state = loader.state_dict()
    again = DataLoader(files[0], 4, **options)
    again.load_state_dict(state)
    rest = [n for batch in again for n in batch]
    assert len(rest) == 24
    fresh = DataLoader(files[0], 8, **options)
    list(fresh)
    assert [n for batch in fresh for n in batch][16:] == rest


def test_torch_loaders_take_the_iterable_dataset(files):
    torch = pytest.importorskip("torch")
    from straightway.torch import IterableDataset

    folder, contents = files
    for workers in (0, 2):
        dataset = IterableDataset(straightway.Dataset(folder), 8, True, layout="fixed")
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
        rows = [row.numpy().tobytes() for tensor in loader for row in tensor]
        assert sorted(rows) == sorted(contents), workers
    dataset = IterableDataset(folder, 8, True, layout="fixed")
    state = None
    for at, _ in enumerate(dataset):
        if at == 2:
            state = dataset.state_dict()
            break
    again = pickle.loads(pickle.dumps(IterableDataset(folder, 8, True, layout="fixed")))
    again.load_state_dict(state)
    assert sum(len(tensor) for tensor in again) == 16


def test_state_goes_through_workers_of_torchs_own_loader(files):
    torch = pytest.importorskip("torch")
    from straightway.torch import IterableDataset

    folder, contents = files
    made = lambda: IterableDataset(folder, 4, True, layout="fixed", seed=11)
    rows_of = lambda batches: [row.numpy().tobytes() for batch in batches for row in batch]

    class Told(torch.utils.data.IterableDataset):
        """Gives the state with each batch: where a worker is only it knows."""

        def __init__(self, inner):
            self.inner = inner

        def __iter__(self):
            for batch in self.inner:
                yield batch, self.inner.state_dict()

    given = iter(torch.utils.data.DataLoader(Told(made()), batch_size=None, num_workers=2))
    first, states = zip(*(next(given) for _ in range(4)))
    del given
    # Two batches of each worker: they are at the same place.
    assert states[0] == states[1] != states[2] == states[3]
    for workers in (0, 2, 3):
        dataset = made()
        dataset.load_state_dict(states[3])
        rest = rows_of(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))
        assert len(rest) == len(contents) - 16 and sorted(rows_of(first) + rest) == sorted(contents), workers


def test_workers_of_torchs_own_loader_are_not_given_the_parents_threads(files):
    torch = pytest.importorskip("torch")
    from straightway.torch import IterableDataset

    folder, contents = files
    dataset = IterableDataset(folder, 4, True, layout="fixed")
    # Makes a loader here, before there are workers.
    assert dataset.state_dict() == IterableDataset(folder, 4, True, layout="fixed").state_dict()
    alone = [[row.numpy().tobytes() for batch in dataset for row in batch] for _ in range(2)]
    for keeps in (True, False):
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=keeps)
        epochs = [[row.numpy().tobytes() for batch in loader for row in batch] for _ in range(2)]
        assert all(sorted(epoch) == sorted(contents) for epoch in epochs)
        # Workers that stay go on to the next epoch; new ones begin again. Ranks take turns, so only sets of samples are alike.
        assert (epochs[0] == epochs[1]) != keeps
    assert alone[0] != alone[1]


def test_seek_is_where_going_there_would_be(tmp_path):
    for number in range(23):
        (tmp_path / f"{number:02}").write_bytes(bytes([number]))
    made = lambda: straightway.Loader(straightway.Dataset(tmp_path), 1, seed=3, epochs=2)
    with made() as loader:
        order = [bytes(batch[0])[0] for batch in loader]
    assert len(order) == 46
    for position, epoch in [(0, 0), (5, 0), (22, 0), (0, 1), (9, 1)]:
        with made() as loader:
            loader.seek(position, epoch)
            assert [bytes(batch[0])[0] for batch in loader] == order[epoch * 23 + position :]
    with made() as loader, pytest.raises(straightway.Error):
        loader.seek(24)
        next(loader)
