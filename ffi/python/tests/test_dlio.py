"""DLIO itself, with our classes named in its workload."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("mpi4py", reason="mpi4py is not installed")
pytest.importorskip("hydra", reason="hydra is not installed")

STANDINS = os.pathsep.join(str(pathlib.Path(__file__).parent / "standins" / name) for name in ["tracer", "no_tensorflow"])
COMMON = [
    "workload=unet3d_h100",
    "++workload.dataset.num_files_train=6",
    "++workload.dataset.record_length_bytes=1000000",
    "++workload.dataset.record_length_bytes_stdev=0",
    "++workload.dataset.record_length_bytes_resize=1000000",
    "++workload.dataset.record_length=1000000",
    "++workload.dataset.record_length_stdev=0",
    "++workload.dataset.record_length_resize=1000000",
    "++workload.reader.batch_size=3",
    "++workload.reader.read_threads=1",
    "++workload.train.epochs=2",
    "++workload.train.computation_time=0.01",
]
OURS = [
    "++workload.reader.data_loader_classname=straightway.dlio.StraightwayDataLoader",
    "++workload.reader.data_loader_sampler=index",
]


def dlio(folder, *more):
    """Runs it in a process of its own; what it printed."""
    environment = {**os.environ, "PYTHONPATH": STANDINS, "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    command = [sys.executable, "-c", "from dlio_benchmark.main import main; main()", *COMMON]
    command += [f"++workload.dataset.data_folder={folder}/data", f"++hydra.run.dir={folder}/out", *more]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dlio")
    probe = [sys.executable, "-c", "import dlio_benchmark.main"]
    probe = subprocess.run(probe, env={**os.environ, "PYTHONPATH": STANDINS}, capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"DLIO cannot be imported: {probe.stderr.strip().splitlines()[-1]}")
    more = ["++workload.workflow.generate_data=True", "++workload.workflow.train=False"]
    dlio(folder, *more, "++workload.workflow.checkpoint=False")
    return folder


def test_a_workload_trains_with_our_loader(generated):
    dlio(generated, "++workload.workflow.train=True", "++workload.workflow.checkpoint=False", *OURS)
    summary = json.loads((generated / "out" / "summary.json").read_text())
    assert summary["num_files_train"] == 6
    epochs = json.loads((generated / "out" / "per_epoch_stats.json").read_text())
    # Two epochs of two steps each, as six files in batches of three are.
    assert sorted(epochs) == ["1", "2"]
    output = json.loads((generated / "out" / "0_output.json").read_text())
    assert [len(output[epoch]["load"]["block1"]) for epoch in ("1", "2")] == [2, 2]


def test_samples_are_the_images_alone_with_and_without_an_index(generated):
    script = """
import pathlib, sys
from straightway import Dataset
from straightway.dlio import _dataset
folder = pathlib.Path(sys.argv[1])
files = sorted(map(str, folder.iterdir()))
scanned = _dataset(str(folder), files, "npz", "x")
Dataset(files, format="npz", column="x").index(f"{folder}.index.arrow")
indexed = _dataset(str(folder), files, "npz", "x")
for dataset in [scanned, indexed]:
    print(len(dataset), {dataset.place(number).length for number in range(len(dataset))})
print("index" in repr(scanned), "index" in repr(indexed), "index" in repr(_dataset(str(folder), files[:2], "npz", "x")))
pathlib.Path(f"{folder}.index.arrow").unlink()
"""
    command = [sys.executable, "-c", script, generated / "data" / "train"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": STANDINS}, capture_output=True, text=True, timeout=300)
    # Each archive has labels too. DLIO's images are square: 1000 by 1000.
    assert done.stdout.splitlines() == ["6 {1000000}", "6 {1000000}", "False True False"], done.stdout + done.stderr


def test_a_workload_saves_by_our_checkpointing(generated):
    state = [
        "++workload.workflow.train=True",
        "++workload.workflow.checkpoint=True",
        "++workload.checkpoint.checkpoint_mechanism_classname=straightway.dlio.StraightwayCheckpointing",
        f"++workload.checkpoint.checkpoint_folder={generated}/saved",
        "++workload.checkpoint.checkpoint_after_epoch=1",
        "++workload.checkpoint.epochs_between_checkpoints=1",
        "++workload.checkpoint.model_size=40000",
        "++workload.checkpoint.type=all_ranks",
    ]
    dlio(generated, *state, *OURS)
    saved = sorted((generated / "saved").rglob("*.safetensors"))
    assert saved, sorted((generated / "saved").rglob("*"))
    import straightway

    assert all(len(straightway.load_file(file)) > 0 for file in saved)
