"""Reads blocks of a file into host memory with KvikIO's POSIX path and prints one JSON line: what it cost, a digest of the memory.

    kvikio_host.py --direct on|off --driver LIBRARY --file FILE --blocks N --block N --ops N --slots N --seed N

One `pread` for each block, waited for, one thread. `--direct on` lets KvikIO open the file with O_DIRECT. KvikIO asks the CUDA driver whose
memory an address is: where there is none, LIBRARY is loaded in its place, the project's stand-in. Run by `straightway-benches cufile`.
"""

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import sys

from load import MASK, Meter, splitmix64


def load_driver(path):
    """The name of the driver that KvikIO will find: a library that is loaded already is not looked for again."""
    try:
        ctypes.CDLL("libcuda.so.1")
        return "the machine's"
    except OSError:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        return "stand-in"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direct", required=True, choices=["on", "off"])
    parser.add_argument("--driver", required=True)
    parser.add_argument("--file", required=True)
    for name in ("--blocks", "--block", "--ops", "--slots", "--seed"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()

    driver = load_driver(args.driver)
    import kvikio
    import kvikio.defaults
    import numpy

    settings = {"compat_mode": kvikio.CompatMode.ON, "num_threads": 1, "auto_direct_io_read": args.direct == "on"}
    kvikio.defaults.set(settings)
    memory = mmap.mmap(-1, args.block * args.slots, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = numpy.frombuffer(memory, dtype=numpy.uint8)
    whole[:] = 0xA5
    places = [whole[at : at + args.block] for at in range(0, len(whole), args.block)]
    # The order is no part of the cost.
    plan = [
        (places[op % args.slots], splitmix64((args.seed + op) & MASK) % args.blocks * args.block)
        for op in range(args.ops)
    ]
    file, block = kvikio.CuFile(args.file, "r"), args.block
    meter = Meter()
    for place, offset in plan:
        if (got := file.pread(place, block, offset).get()) != block:
            raise RuntimeError(f"{got} of {block} bytes")
    used = meter.stop()
    result = {
        "ops": args.ops,
        "bytes": args.ops * args.block,
        **used,
        "checksum": hashlib.sha256(whole).hexdigest(),
        "path": {"kvikio": kvikio.__version__, "direct": args.direct, "driver": driver},
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    # The process has done its job; the order in which libraries unload is not part of it.
    os._exit(0)


if __name__ == "__main__":
    main()
