"""Runs DLIO's own benchmark once, as its users do, and prints one JSON line of what it reported.

    dlio.py generate WORKLOAD DIR --files N [--samples N] [--record BYTES] [--spread BYTES]
    dlio.py train WORKLOAD DIR --files N [...] --loader ours|torch|tensorflow --ranks N --step-s S --steps N --out DIR

WORKLOAD: unet3d or resnet50, of which DLIO's own `*_h100` workload is taken and what is scaled is overridden. Ranks are MPI
processes, an emulated accelerator each; the step is DLIO's sleep. `generate` uses DLIO's own generators. Run by
`straightway-benches dlio-unet3d` and `dlio-resnet50`.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

TREE = pathlib.Path(__file__).resolve().parents[2]
#: A tracer that traces nothing: DLIO 2.0 wants one, and its own stand-in fails.
TRACER = TREE / "ffi/python/tests/standins/tracer"
#: What DLIO imports whatever is asked of it. A run that uses tensorflow has the real one.
NO_TENSORFLOW = TREE / "ffi/python/tests/standins/no_tensorflow"
#: One run. Less than what the harness waits for this script.
LIMIT_S = 280
OURS = ["++workload.reader.data_loader_classname=straightway.dlio.StraightwayDataLoader"]
OURS += ["++workload.reader.data_loader_sampler=index"]


def loader(workload, name):
    """The overrides that choose a loader, and whether it runs without tensorflow."""
    if name == "tensorflow":
        return ["++workload.framework=tensorflow", "++workload.reader.data_loader=tensorflow"], False
    if workload == "resnet50":
        # DLIO has no TFRecord for torch; a loader named by class runs in its tensorflow framework.
        if name == "torch":
            raise SystemExit("DLIO's torch loader does not read TFRecord")
        return OURS, False
    return ([] if name == "torch" else OURS), True


def common(args):
    sizes = [f"++workload.dataset.data_folder={args.dir}", f"++workload.dataset.num_files_train={args.files}"]
    sizes += [f"++workload.dataset.num_samples_per_file={args.samples}"]
    if args.record:
        sizes += [f"++workload.dataset.record_length={args.record}"]
        sizes += [f"++workload.dataset.record_length_stdev={args.spread}"]
    return [f"workload={args.workload}_h100", "++workload.workflow.checkpoint=False", *sizes]


def run(args, ranks, overrides, without_tensorflow):
    """DLIO in `ranks` processes; where its summary is."""
    path = [str(TRACER)] + ([str(NO_TENSORFLOW)] if without_tensorflow else [])
    path += [one for one in [args.package, os.environ.get("PYTHONPATH")] if one]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    out = pathlib.Path(args.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mpirun = pathlib.Path(sys.executable).parent / "mpirun"
    # Ranks that wait give their core to those that read.
    command = [str(mpirun), "-n", str(ranks), "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    command += [sys.executable, "-c", "from dlio_benchmark.main import main; main()", *common(args), *overrides]
    command += [f"++hydra.run.dir={out}"]
    started = subprocess.Popen(
        command, cwd=out, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, complained = started.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # Told to end, mpirun ends its ranks.
        started.terminate()
        started.communicate()
        raise SystemExit(f"DLIO was ended after {LIMIT_S} s") from None
    summary = out / "summary.json"
    if started.returncode != 0:
        sys.stderr.write(said[-2000:] + complained[-4000:])
        raise SystemExit(started.returncode)
    return summary


def generate(args):
    if args.workload == "resnet50":
        # DLIO calls a tool of DALI's to index what it generated, unless the index is there. Nobody here reads it.
        index = pathlib.Path(args.dir) / "index/train"
        index.mkdir(parents=True, exist_ok=True)
        digits = len(str(args.files))
        for number in range(args.files):
            (index / f"img_{number:0{digits}}_of_{args.files}.tfrecord.idx").touch()
    overrides = ["++workload.workflow.generate_data=True", "++workload.workflow.train=False"]
    run(args, 1, overrides, args.workload != "resnet50")
    # The index is part of preparing a dataset; opening it costs nothing when training starts.
    sys.path.insert(0, args.package)
    import straightway

    format, column = {"unet3d": ("npz", "x"), "resnet50": ("tfrecord", None)}[args.workload]
    files = sorted(pathlib.Path(args.dir, "train").iterdir())
    straightway.Dataset(files, format=format, column=column).index(pathlib.Path(args.dir, "train.index.arrow"))
    sys.stdout.write(json.dumps({"seconds": 0.0}) + "\n")


def train(args):
    overrides, without_tensorflow = loader(args.workload, args.loader)
    overrides += ["++workload.train.epochs=1", f"++workload.train.computation_time={args.step_s}"]
    overrides += [f"++workload.train.total_training_steps={args.steps}"]
    overrides += [f"++workload.reader.batch_size={args.batch}"] if args.batch else []
    overrides += [f"++workload.reader.read_threads={args.threads}"] if args.threads else []
    summary = json.loads(run(args, args.ranks, overrides, without_tensorflow).read_text())
    metric = summary["metric"]
    output = [json.loads((pathlib.Path(args.out) / f"{rank}_output.json").read_text()) for rank in range(args.ranks)]
    steps = [len(rank["1"]["proc"]["block1"]) for rank in output]
    if any(count != args.steps for count in steps):
        raise SystemExit(f"ranks made {steps} steps, not {args.steps} each")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = metric["train_throughput_mean_samples_per_second"]
    seconds = max(sum(rank["1"]["proc"]["block1"][1:]) for rank in output)
    result = {
        "seconds": seconds,
        "cpu_user_s": used.ru_utime,
        "cpu_sys_s": used.ru_stime,
        "more": {"au_percent": metric["train_au_mean_percentage"], "dlio_samples_per_second": rate},
    }
    sys.stdout.write(json.dumps(result) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["generate", "train"])
    parser.add_argument("workload", choices=["unet3d", "resnet50"])
    parser.add_argument("dir")
    parser.add_argument("--files", type=int, required=True)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--record", type=int)
    parser.add_argument("--spread", type=int, default=0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--loader", choices=["ours", "torch", "tensorflow"])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--step-s", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--package", help="folder that our package was installed into")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    {"generate": generate, "train": train}[args.verb](args)


if __name__ == "__main__":
    main()
