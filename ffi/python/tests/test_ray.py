"""Ray Data on our read tasks, and the example of docs/python.md on Ray's actors."""

import os
import re
import subprocess
import sys
from pathlib import Path

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


PAGE = Path(__file__).parents[3] / "docs/python.md"
EXAMPLE = re.compile(r"^```python on_ray\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_example_of_a_checkpoint_runs_as_written(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    [text] = EXAMPLE.findall(PAGE.read_text())
    (tmp_path / "on_ray.py").write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "on_ray.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert lines[:3] == ["rank 0 begins", "rank 1 begins", "rank 2 begins"]
    assert sum(line.startswith("step 8, loss ") for line in lines) == 3
    # Both go on from the last step, with bytes of the files.
    read = [re.fullmatch(r"rank (\d) goes on at step 8: read (\d+) bytes", line) for line in lines]
    assert [found[1] for found in read if found] == ["0", "1"]
    assert all(int(found[2]) > 0 for found in read if found)
    # 240 samples are 10 steps of 24; two epochs are 20.
    assert sum(line.startswith("step 20, loss ") for line in lines) == 2
    assert lines[-1] == "[8, 20]"
    # Whoever has only torch has the checkpoint.
    import torch
    import torch.distributed.checkpoint as dcp

    state = {"model": {"0.weight": torch.zeros(64, 16)}}
    dcp.load(state, checkpoint_id=tmp_path / "shared/checkpoints/step-000020", no_dist=True)
    assert state["model"]["0.weight"].any()
