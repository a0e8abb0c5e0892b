"""Reads a file into GPU memory with KvikIO and prints one JSON line: what it cost and a digest of sampled bytes.

    gpu_read.py --compat on|off --reads whole|parts|cold-parts --threads N --part-bytes N --passes N --seed N FILE

`--compat on` is KvikIO's own path: POSIX reads into its pinned buffers and copies from there, by its thread pool. `off` is
cuFile, and an error where cuFile does not work. `--reads whole`: one `pread` a pass, which KvikIO splits into tasks, and a first pass
that is not counted. `--reads parts`: one for each part, one after the other, and the first part once before; `cold-parts`:
and it leaves the page cache again. Run by `straightway-benches gpu`.

Device memory comes from the driver by ctypes, in the primary context, as a CUDA array interface: no cupy, no CUDA toolkit.
"""

import argparse
import ctypes
import hashlib
import json
import os
import sys

from load import MASK, SAMPLE_BYTES, SAMPLES, Meter, splitmix64


class Driver:
    """The few calls of libcuda that are needed, checked. CUDA Driver API 11.4 and later."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.call("cuCtxSetCurrent", self.context)

    def call(self, name, *args):
        if (code := getattr(self.library, name)(*args)) != 0:
            raise RuntimeError(f"{name} answered {code}")

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def read(self, address, size):
        buffer = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", buffer, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return buffer.raw


class DeviceArray:
    """Bytes on the device, as CUDA array interface version 3."""

    def __init__(self, address, size):
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def digest(driver, address, size, part_bytes, seed):
    """As `digest_of_parts` in benches/src/data.rs takes it: both ends of each part and eight samples between."""
    sha = hashlib.sha256()
    for part, start in enumerate(range(0, size, part_bytes)):
        last = max(min(part_bytes, size - start) - SAMPLE_BYTES, 0)
        between = [splitmix64((seed + part * SAMPLES + sample) & MASK) % (last + 1) for sample in range(SAMPLES)]
        for at in [0, last, *between]:
            sha.update(driver.read(address + start + at, SAMPLE_BYTES))
    return sha.hexdigest()


def gds(kvikio):
    """What cuFile says of itself; its words where it does not answer."""
    try:
        import kvikio.cufile_driver

        return bool(kvikio.cufile_driver.get("is_gds_available"))
    except Exception as error:  # the property asks a driver that may not be there, and raises what the binding likes
        return f"{type(error).__name__}: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compat", required=True, choices=["on", "off"])
    for name in ("--threads", "--part-bytes", "--passes", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--reads", required=True, choices=["whole", "parts", "cold-parts"])
    parser.add_argument("file")
    args = parser.parse_args()

    import kvikio
    import kvikio.buffer
    import kvikio.defaults

    driver = Driver()
    mode = {"on": kvikio.CompatMode.ON, "off": kvikio.CompatMode.OFF}[args.compat]
    kvikio.defaults.set({"compat_mode": mode, "num_threads": args.threads})
    size = os.stat(args.file).st_size
    address = driver.allocate(size)
    step = size if args.reads == "whole" else args.part_bytes
    lengths = [(start, min(step, size - start)) for start in range(0, size, step)]
    parts = [(DeviceArray(address + start, length), length, start) for start, length in lengths]
    file = kvikio.CuFile(args.file, "r")
    if args.compat == "off":
        for array, _, _ in parts:
            kvikio.buffer.memory_register(array)

    def read(array, length, start):
        got = file.pread(array, length, start).get()
        if got != length:
            raise RuntimeError(f"{got} of {length} bytes")

    read(*parts[0])
    if args.reads == "cold-parts":
        with open(args.file, "rb") as cached:
            os.posix_fadvise(cached.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    meter = Meter()
    for _ in range(args.passes):
        for part in parts:
            read(*part)
    # A copy that is still in a stream would not have been paid for.
    driver.call("cuCtxSynchronize")
    used = meter.stop()
    result = {
        "ops": args.passes * len(parts),
        "bytes": size * args.passes,
        **used,
        "checksum": digest(driver, address, size, args.part_bytes, args.seed),
        "path": {
            "kvikio": kvikio.__version__,
            "compat": args.compat,
            "threads": args.threads,
            "task_bytes": kvikio.defaults.get("task_size"),
            "bounce_bytes": kvikio.defaults.get("bounce_buffer_size"),
            "gds_available": gds(kvikio),
        },
    }
    # cuFile writes to stdout, too: the result is a line of its own, and the last.
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    # The process has done its job; the order in which libraries unload is not part of it.
    os._exit(0)


if __name__ == "__main__":
    main()
