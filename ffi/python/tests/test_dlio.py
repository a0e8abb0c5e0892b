"""DLIO itself, with our classes named in its workload."""

import json
import os
import pathlib
import re
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


READER = "++workload.reader.reader_classname=straightway.dlio.StraightwayReader"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([STANDINS, *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def dlio(folder, *more, program="from dlio_benchmark.main import main; main()", data="data", fails=False):
    """Runs it in a process of its own; what it printed."""
    command = [sys.executable, "-c", program, *COMMON]
    command += [f"++workload.dataset.data_folder={folder}/{data}", f"++hydra.run.dir={folder}/out", *more]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dlio")
    probe = [sys.executable, "-c", "import dlio_benchmark.main"]
    probe = subprocess.run(probe, env=ENVIRONMENT, capture_output=True, text=True)
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


def test_a_workload_trains_with_our_reader(generated):
    data_loader_of_dlio = ["++workload.workflow.train=True", "++workload.workflow.checkpoint=False", READER]
    dlio(generated, *data_loader_of_dlio)
    output = json.loads((generated / "out" / "0_output.json").read_text())
    assert [len(output[epoch]["load"]["block1"]) for epoch in ("1", "2")] == [2, 2]
    # It was asked: a file that ends too early ends the run, which DLIO's reader would say in other words.
    whole = next((generated / "data" / "train").iterdir())
    content = whole.read_bytes()
    try:
        whole.write_bytes(content[:-100_000])
        told = dlio(generated, *data_loader_of_dlio, fails=True)
        assert "straightway" in told and "BadFormat" in told and whole.name in told
    finally:
        whole.write_bytes(content)


# Instead of a training: what the reader gives beside what numpy and PIL read.
COMPARE = """
import io, numpy as np, dlio_benchmark.main as dlio
from PIL import Image
from dlio_benchmark.common.enumerations import DatasetType

def run(self):
    self.args.reconfigure(1)
    reader = self.args.reader_class(DatasetType.TRAIN, 0, 1)
    for file in self.args.file_list_train:
        whole = np.load(file) if file.endswith(("npz", "npy")) else np.asarray(Image.open(file))
        whole = whole["x"] if file.endswith("npz") else whole
        reader.open_file_map[file] = reader.open(file)
        for number in range(self.args.num_samples_per_file):
            want = whole[..., number] if file.endswith(("npz", "npy")) else whole
            assert want.any() and (reader.get_sample(file, number).reshape(want.shape) == want).all(), file
    reader.finalize()
    if reader.file_map.get(0):
        print("iterated", len(list(reader.next())))
    else:
        print("asked", len([reader.read_index(number, 1) for number in reader.global_index_map]))

dlio.DLIOBenchmark.run, dlio.DLIOBenchmark.finalize = run, lambda self: None
dlio.main()
"""


@pytest.mark.parametrize(
    ("format", "samples", "sampler", "told"),
    [
        ("npz", 1, "iterative", "iterated 2"),
        ("npz", 3, "index", "asked 18"),
        ("npy", 2, "iterative", "iterated 4"),
        ("jpeg", 1, "index", "asked 6"),
    ],
)
def test_the_reader_gives_the_samples_of_every_format(generated, format, samples, sampler, told):
    more = [
        "++workload.workflow.generate_data=True",
        "++workload.workflow.checkpoint=False",
        f"++workload.dataset.format={format}",
        f"++workload.dataset.num_samples_per_file={samples}",
        f"++workload.reader.data_loader_sampler={sampler}",
    ]
    assert told in dlio(generated, *more, READER, program=COMPARE, data=f"{format}-{samples}").splitlines()


# Instead of a training: what each refuses, and how it says so.
REFUSED = """
import io, os, numpy as np, dlio_benchmark.main as dlio
from dlio_benchmark.common.enumerations import DatasetType, FormatType
from straightway.dlio import StraightwayDataLoader, StraightwayReader

def told(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)

def run(self):
    reader = lambda: StraightwayReader(DatasetType.TRAIN, 0, 1)
    loader = lambda: StraightwayDataLoader(self.args.format, DatasetType.TRAIN, 1)
    self.args.reconfigure(1)
    np.savez_compressed("packed.npz", x=np.ones(1000, np.uint8))
    np.savez("odd.npz", x=np.ones(1001, np.uint8))
    np.savez("other.npz", z=np.ones(1000, np.uint8))
    np.save("floats.npy", np.ones(1000, "f4"))
    np.save("turned.npy", np.asfortranarray(np.ones((10, 100), np.uint8)))
    np.save("whole.npy", np.ones((10, 100), np.uint8))
    open("cut.npy", "wb").write(open("whole.npy", "rb").read()[:-1])
    open("text.npy", "w").write("no array")
    told(lambda: reader().open("packed.npz"))
    told(lambda: reader().open("other.npz"))
    self.args.num_samples_per_file = 2
    told(lambda: reader().open("odd.npz"))
    told(lambda: loader().read())
    self.args.num_samples_per_file = 1
    self.args.format = FormatType.NPY
    for name in ["floats.npy", "turned.npy", "cut.npy", "text.npy", "nothing.npy"]:
        told(lambda: reader().open(name))
    assert reader().open("whole.npy").shape == (1000, 1)
    for self.args.format in [FormatType.CSV, FormatType.TFRECORD]:
        told(reader)
    self.args.format = FormatType.HDF5
    told(lambda: loader().read())

dlio.DLIOBenchmark.run, dlio.DLIOBenchmark.finalize = run, lambda self: None
dlio.main()
"""


def test_what_cannot_be_read_is_refused_with_a_remedy(generated):
    output = dlio(generated, "++workload.workflow.checkpoint=False", program=REFUSED)
    told = [line for line in output.splitlines() if re.match(r"\w+ ", line) and re.search("Error|NotFound|BadFormat", line.split()[0])]
    wanted = [
        "ValueError packed.npz is compressed; generate it",
        "NotFound .*other.npz",
        "ValueError odd.npz has 1001 bytes, which are not 2 samples",
        "ValueError 2 samples of a npz file .* name straightway.dlio.StraightwayReader as reader_classname",
        "ValueError floats.npy has float32 in C order",
        "ValueError turned.npy has uint8 in Fortran order",
        r"ValueError cut.npy has 1127 bytes, and its header says \(10, 100\)",
        "ValueError text.npy is no npy file",
        "NotFound .*nothing.npy",
        "ValueError StraightwayReader reads npz, npy, jpeg, png, not csv; for tfrecord",
        "ValueError StraightwayReader reads npz, npy, jpeg, png, not tfrecord; for tfrecord name straightway.dlio.StraightwayDataLoader",
        "ValueError straightway.dlio reads npz, npy, tfrecord, jpeg, png; hdf5 has no reader here",
    ]
    assert len(told) == len(wanted), told
    for want, line in zip(wanted, told):
        assert re.match(want, line), line


def test_the_loader_takes_an_npy_file_as_one_sample(generated):
    work = ["++workload.workflow.generate_data=True", "++workload.workflow.train=True", "++workload.workflow.checkpoint=False"]
    dlio(generated, *work, *OURS, "++workload.dataset.format=npy", data="npy-1")
    script = """
import pathlib, sys
from straightway.dlio import _FORMATS, _dataset, FormatType
files = sorted(map(str, pathlib.Path(sys.argv[1]).iterdir()))
dataset = _dataset(sys.argv[1], files, *_FORMATS[FormatType.NPY])
print(len(dataset), [dataset.place(number).length == pathlib.Path(file).stat().st_size for number, file in enumerate(files)])
"""
    command = [sys.executable, "-c", script, generated / "npy-1" / "train"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [f"6 {[True] * 6}"], done.stdout + done.stderr


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
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    # Each archive has labels too. DLIO's images are square: 1000 by 1000.
    assert done.stdout.splitlines() == ["6 {1000000}", "6 {1000000}", "False True False"], done.stdout + done.stderr


def saving(folder):
    return [
        "++workload.workflow.train=True",
        "++workload.workflow.checkpoint=True",
        "++workload.checkpoint.checkpoint_mechanism_classname=straightway.dlio.StraightwayCheckpointing",
        f"++workload.checkpoint.checkpoint_folder={folder}",
        "++workload.checkpoint.checkpoint_after_epoch=1",
        "++workload.checkpoint.epochs_between_checkpoints=1",
        "++workload.checkpoint.model_size=40000",
        "++workload.checkpoint.optimization_groups=[1009,0,77]",
        "++workload.checkpoint.num_layers=2",
        "++workload.checkpoint.layer_parameters=[500,20]",
        "++workload.checkpoint.type=all_ranks",
    ]


# Instead of a training: DLIO's mechanism saves states of other values than its own, which are all zero, and gets them back.
RECOVER = """
import itertools, torch, dlio_benchmark.main as dlio
from straightway.dlio import _tensors

def run(self):
    mechanism = self.checkpointing_mechanism
    numbers = itertools.count(1)
    states = {"model": mechanism.model_state, "optimizer": mechanism.optimization_state, "layer-1": mechanism.layer_state}
    for kind, state in states.items():
        # What the training before has saved, over what is here.
        for _, tensor in _tensors("", state):
            tensor.fill_(7)
        back = mechanism.load_state(f"{kind}-1-2-0", state)
        assert back is state and not any(tensor.any() for _, tensor in _tensors("", state)), kind
        for _, tensor in _tensors("", state):
            tensor.copy_(torch.arange(len(tensor)) % 101 + next(numbers))
    kept = {kind: {name: tensor.clone() for name, tensor in _tensors("", state)} for kind, state in states.items()}
    mechanism.checkpoint(7, 3)
    for kind, state in states.items():
        for _, tensor in _tensors("", state):
            tensor.zero_()
        mechanism.load_state(f"{kind}-7-3-0", state)
        for name, tensor in _tensors("", state):
            assert torch.equal(tensor, kept[kind][name]) and tensor.any(), (kind, name)
    print("recovered", sorted(len(names) for names in kept.values()))
    mixed = {"a": [{"b": (torch.zeros(3), 5)}, torch.zeros(2, 2)], "c": "text"}
    mechanism.save_state("mixed", {"a": [{"b": (torch.arange(3.0), 6)}, torch.ones(2, 2)], "c": "other"})
    inner = mixed["a"]
    mechanism.load_state("mixed", mixed)
    assert mixed["a"] is inner and mixed["c"] == "text" and inner[0]["b"][1] == 5
    assert inner[0]["b"][0].tolist() == [0, 1, 2] and inner[1].sum() == 4
    for wrong in [{"a": [torch.zeros(1)]}, {"a": [{"b": [torch.zeros(4)]}]}, {"a": [{"b": [torch.zeros(3, dtype=torch.int8)]}]}]:
        before = str(wrong)
        try:
            mechanism.load_state("mixed", wrong)
        except (KeyError, ValueError) as error:
            print(type(error).__name__, error)
        assert str(wrong) == before

dlio.DLIOBenchmark.run, dlio.DLIOBenchmark.finalize = run, lambda self: None
dlio.main()
"""


def test_a_workload_saves_and_recovers_by_our_checkpointing(generated):
    state = saving(generated / "saved")
    dlio(generated, *state, *OURS)
    saved = sorted(path.name for path in (generated / "saved").rglob("*.safetensors"))
    kinds = [f"{kind}-{epoch}-2-0.safetensors" for kind in ("layer-0", "layer-1", "model", "optimizer") for epoch in (1, 2)]
    assert saved == kinds
    told = dlio(generated, *state, *OURS, program=RECOVER)
    assert "recovered [1, 2, 5]" in told
    assert "KeyError" in told and "has no a.0" in told
    assert told.count("ValueError") == 2 and "is torch.float32 [3], and torch.float32 [4] was asked for" in told
