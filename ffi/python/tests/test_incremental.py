"""Saves that link what did not change."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
dcp = pytest.importorskip("torch.distributed.checkpoint")

from straightway.torch.checkpoint import StorageReader, StorageWriter  # noqa: E402


def save(path: Path, state, **options):
    writer = StorageWriter(path, file_bytes=4 << 20, **options)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return writer.report


def loaded(path: Path, like):
    state = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    dcp.load(state, storage_reader=StorageReader(path, verify="require"), no_dist=True)
    return state


def test_files_of_tensors_that_stayed_are_links_and_the_others_are_written(tmp_path: Path):
    state = {name: torch.full((1 << 20,), n, dtype=torch.float32) for n, name in enumerate("abc")}
    first = save(tmp_path / "1", state, incremental=True)
    assert first.linked == 0 and first.bytes > 3 << 22
    state["b"] += 1
    second = save(tmp_path / "2", state, incremental=tmp_path / "1")
    assert second.linked >= 2 << 22 and 1 << 22 <= second.bytes < 2 << 22, second
    assert "linked" in str(second)
    files = {step: {file.name: file.stat().st_ino for file in (tmp_path / step).glob("*.distcp")} for step in "12"}
    assert len(files["1"]) == 3 and sum(files["1"][name] == files["2"][name] for name in files["1"]) == 2
    for name, tensor in loaded(tmp_path / "2", state).items():
        assert torch.equal(tensor, state[name])
    assert torch.equal(loaded(tmp_path / "1", state)["b"], state["b"] - 1)


def test_without_checksums_to_compare_with_everything_is_written(tmp_path: Path):
    state = {"a": torch.ones(1 << 20)}
    save(tmp_path / "1", state)
    for earlier in (tmp_path / "1", tmp_path / "none"):
        report = save(tmp_path / "2", state, incremental=earlier)
        assert report.linked == 0 and report.bytes > 1 << 22
    again = save(tmp_path / "3", state, incremental=tmp_path / "2")
    assert again.linked > 1 << 22 and torch.equal(loaded(tmp_path / "3", state)["a"], state["a"])
