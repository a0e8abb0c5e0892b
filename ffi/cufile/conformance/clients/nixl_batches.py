# SPDX-License-Identifier: Apache-2.0
"""NIXL from the package index, unmodified, on the libcufile that the loader gives it: its GDS plugin, which uses batches.

    nixl_batches.py FOLDER LIBRARY

Host memory to and from files. The last line begins with `test result: ok.` if everything held.
"""

import os
import sys
import time

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

COUNT, SIZE = 32, 64 * 1024


def moved(agent, operation, memory, files):
    handle = agent.initialize_xfer(operation, memory, files, agent.name)
    state = agent.transfer(handle)
    end = time.monotonic() + 30
    while state not in ("DONE", "ERR") and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    agent.release_xfer_handle(handle)
    assert state == "DONE", (operation, state)


def round_trip(plugin, folder):
    """Writes what is in memory, reads it back elsewhere, in one transfer of COUNT pieces each."""
    agent = nixl_agent("of-the-test", nixl_agent_config(backends=[]))
    agent.create_backend(plugin)
    out = np.arange(COUNT * SIZE, dtype=np.uint32).astype(np.uint8)
    back = np.zeros_like(out)
    fd = os.open(os.path.join(folder, f"file-{plugin}"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(fd, COUNT * SIZE)
    files = agent.get_reg_descs([(0, COUNT * SIZE, fd, "")], "FILE")
    registered = [agent.register_memory(files)]
    for array in (out, back):
        registered.append(agent.register_memory(agent.get_reg_descs([(array.ctypes.data, array.nbytes, 0, "")], "DRAM")))
    on_file = agent.get_xfer_descs([(index * SIZE, SIZE, fd) for index in range(COUNT)], "FILE")
    for operation, array in (("WRITE", out), ("READ", back)):
        pieces = [(array.ctypes.data + index * SIZE, SIZE, 0) for index in range(COUNT)]
        moved(agent, operation, agent.get_xfer_descs(pieces, "DRAM"), on_file)
    assert (out == back).all()
    with open(os.path.join(folder, f"file-{plugin}"), "rb") as file:
        assert file.read() == out.tobytes()
    for one in registered:
        agent.deregister_memory(one)
    os.close(fd)


def main():
    folder, library = sys.argv[1:3]
    for plugin in ("GDS", "GDS_MT"):
        round_trip(plugin, folder)
        print(plugin)
    with open("/proc/self/maps", encoding="ascii") as maps:
        loaded = {line.split()[-1] for line in maps if "libcufile" in line or "straightway_cufile" in line}
    assert loaded == {os.path.realpath(library)}, loaded
    print("test result: ok. 2 passed; 0 failed")


if __name__ == "__main__":
    main()
