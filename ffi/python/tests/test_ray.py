"""Ray Data on our read tasks."""

import pytest

import straightway

ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.data", reason="ray's data part is not installed")


def test_every_sample_comes_once_from_tasks(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    want = {}
    for number in range(37):
        want[f"{number:03}"] = bytes([number]) * (100 + number)
        (files / f"{number:03}.bin").write_bytes(want[f"{number:03}"])
    index = tmp_path / "samples.index"
    straightway.Dataset(files).index(index)
    from straightway.ray import SampleSource

    source = SampleSource(index)
    tasks = source.get_read_tasks(5)
    assert [task.metadata.num_rows for task in tasks] == [7, 7, 8, 7, 8]
    rows = [row for task in tasks for block in task() for row in block.to_pylist()]
    assert [row["key"] for row in rows] == sorted(want)
    assert {row["key"]: row["bytes"] for row in rows} == want
    # More tasks than samples: one each, and none is empty.
    assert [task.metadata.num_rows for task in source.get_read_tasks(100)] == [1] * 37


def test_a_ray_job_reads_an_index(tmp_path):
    (tmp_path / "files").mkdir()
    for number in range(20):
        (tmp_path / "files" / f"{number:02}").write_bytes(bytes(range(number + 1)))
    straightway.Dataset(tmp_path / "files").index(tmp_path / "samples.index")
    from straightway.ray import SampleSource

    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        data = ray.data.read_datasource(SampleSource(tmp_path / "samples.index"))
        assert data.count() == 20
        assert sorted(len(row["bytes"]) for row in data.take_all()) == list(range(1, 21))
    finally:
        ray.shutdown()
