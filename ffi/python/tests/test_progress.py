"""How far something is: bars, functions, and what they raise."""

from __future__ import annotations

import sys

import pytest
from test_loader import write_tars

import straightway
from straightway._progress import shown


def checkpoint(folder):
    numpy = pytest.importorskip("numpy")
    tensors = {f"layer.{n}": numpy.full((257, 1031), n, dtype="float32") for n in range(40)}
    straightway.save(tensors, folder, shard_bytes=10 << 20)
    return folder, sum(tensor.nbytes for tensor in tensors.values())


def test_a_function_hears_of_a_load(tmp_path):
    folder, size = checkpoint(tmp_path / "checkpoint")
    told = []
    straightway.load(folder, progress=lambda done, everything: told.append((done, everything)))
    done, everything = told[-1]
    assert done == everything >= size
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_the_function_raises_ends_the_load(tmp_path):
    folder, _ = checkpoint(tmp_path / "checkpoint")

    def tell(done, everything):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        straightway.load(folder, progress=tell)
    assert len(straightway.load(folder)) == 40


def test_a_function_hears_of_a_scan_and_of_an_index(tmp_path):
    write_tars(tmp_path / "tars")
    told = []
    dataset = straightway.Dataset(tmp_path / "tars", progress=lambda *counts: told.append(counts))
    assert told[-1] == (4, 4)
    told.clear()
    dataset.index(tmp_path / "train.arrow", progress=lambda *counts: told.append(counts))
    assert told[-1] == (4, 4)


def test_a_bar_without_tqdm_is_a_line(tmp_path, monkeypatch, capsys):
    folder, _ = checkpoint(tmp_path / "checkpoint")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    straightway.load(folder, progress=True)
    assert "checkpoint: " in (line := capsys.readouterr().err) and line.endswith(" B (100 %)\n"), line


def test_a_bar_by_tqdm(tmp_path, capsys):
    pytest.importorskip("tqdm")
    with shown(True, "weights", "B") as tell:
        tell(1 << 20, 4 << 20)
        tell(4 << 20, 4 << 20)
    err = capsys.readouterr().err
    assert "weights" in err and "100%" in err and "4.00M" in err, err


def test_a_loader_tells_how_many_batches_it_has(tmp_path):
    write_tars(tmp_path / "tars")
    with straightway.Loader(tmp_path / "tars", 8, epochs=2) as loader:
        assert len(loader) == 26 == sum(1 for _ in loader)
    with straightway.Loader(tmp_path / "tars", 8, epochs=None) as loader, pytest.raises(TypeError):
        len(loader)
