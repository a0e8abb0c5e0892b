"""Files that cannot be indexed: raised, or left out, counted and listed; and DALI's indexes beside shards."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

import straightway

DATA = Path(__file__).parents[3] / "sw-data" / "testdata"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two archives that are whole, and one whose first header is damaged."""
    folder = tmp_path / "set"
    folder.mkdir()
    whole = (DATA / "webdataset.tar").read_bytes()
    for name in ("a.tar", "c.tar"):
        (folder / name).write_bytes(whole)
    (folder / "b.tar").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    return folder


def test_a_damaged_file_is_raised_unless_it_may_be_left_out(folder: Path):
    for options in ({}, {"on_bad": "fail"}):
        with pytest.raises(straightway.ChecksumMismatch, match="b.tar"):
            straightway.Dataset(folder, **options)
    dataset = straightway.Dataset(folder, on_bad="skip")
    assert len(dataset) == 10 and [Path(one.uri).name for one in dataset.objects] == ["a.tar", "c.tar"]
    assert dataset.counts["damaged"] == len(dataset.skipped) == 1
    (skipped,) = dataset.skipped
    assert (Path(skipped.uri).name, skipped.kind) == ("b.tar", "checksum_mismatch") and "checksum" in skipped.message
    assert straightway.Dataset(folder / "a.tar").skipped == []


def test_the_quarantine_list_is_that_of_the_command(folder: Path, tmp_path: Path):
    path = tmp_path / "damaged.jsonl"
    dataset = straightway.Dataset(folder, on_bad=f"quarantine={path}")
    (line,) = map(json.loads, path.read_text().splitlines())
    (skipped,) = dataset.skipped
    assert line == {
        "schema": "straightway.dataset.damaged/1",
        "uri": skipped.uri,
        "kind": skipped.kind,
        "message": skipped.message,
    }
    path.write_text("")
    index = dataset.index(tmp_path / "x.index.arrow")
    assert (len(index), index.skipped, index.counts) == (10, [skipped], None)
    assert json.loads(path.read_text())["uri"] == skipped.uri
    with pytest.raises(FileNotFoundError):
        straightway.Dataset(folder, on_bad=f"quarantine={tmp_path}/absent/list")


def test_the_policy_goes_along_and_others_are_refused(folder: Path, tmp_path: Path):
    path = tmp_path / "damaged.jsonl"
    dataset = straightway.Dataset(folder, on_bad=f"quarantine={path}")
    path.unlink()
    again = pickle.loads(pickle.dumps(dataset))
    assert (len(again), again.skipped) == (10, dataset.skipped) and not path.exists()
    for wrong in ("raise", "quarantine=", "quarantine", ""):
        with pytest.raises(straightway.ApiMisuse, match="quarantine=FILE"):
            straightway.Dataset(folder, on_bad=wrong)
    with pytest.raises(straightway.ApiMisuse, match="ignore"):
        straightway.Dataset(folder, sidecars="no")


def test_an_index_beside_a_shard_is_used_and_told(tmp_path: Path):
    shard = tmp_path / "x.tfrecord"
    shard.write_bytes((DATA / "tensorflow.tfrecord").read_bytes())
    (tmp_path / "x.idx").write_bytes((DATA / "tensorflow.tfrecord.sidecar").read_bytes())
    used, walked = straightway.Dataset(shard), straightway.Dataset(shard, sidecars="ignore")
    assert [used.place(number) for number in range(5)] == [walked.place(number) for number in range(5)]
    assert (used.counts["sidecars"], used.counts["sidecar_samples"], used.counts["checksums"]) == (1, 5, 0)
    assert (walked.counts["sidecars"], walked.counts["checksums"]) == (0, 5)
    (tmp_path / "x.idx").write_text("0 16\n")
    unfit = straightway.Dataset(shard)
    assert (unfit.counts["sidecars_unfit"], unfit.counts["checksums"], len(unfit)) == (1, 5, 5)


def test_a_feature_of_records_is_a_column(tmp_path: Path):
    path = DATA / "example.tfrecord"
    wanted = [bytes.fromhex(one["image"][0]) for one in json.loads((DATA / "example.tfrecord.json").read_text())]
    dataset = straightway.Dataset(path, column="image")
    with straightway.Loader(dataset, 4, shuffle=False, epochs=1) as loader:
        assert [bytes(batch[at]) for batch in loader for at in range(len(batch))] == wanted
    with pytest.raises(straightway.NotFound, match="no feature label"):
        straightway.Dataset(path, column="label")
