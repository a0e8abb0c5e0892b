"""Somebody else's host of NVMe over RDMA at our target, in a guest: `foreign_host.py ADDRESS PORT NQN CONTENT`.

The namespace begins with the bytes of the file CONTENT. They are read and compared, one command at a time and many at once; then
written once more from 16 MiB on, inverted, in commands of every size up to the largest, and flushed. What it saw goes to stdout as JSON.
"""

import json
import sys
import time

import nvmeof
from nvmeof import protocol

BEHIND = 16 << 20
IN_FLIGHT = 24
COMMAND = 16 << 10
LIMIT_S = 60


def inverted(data):
    return data.translate(bytes(255 - value for value in range(256)))


def in_flight(controller, namespace, content):
    """Reads of 16 KiB, so many at a time, in an order that is not that of the bytes."""
    blocks = COMMAND // namespace.lba_size
    places = [at * COMMAND for at in range(len(content) // COMMAND)]
    places = places[::2] + places[1::2][::-1]
    buffers = [controller.allocate(COMMAND) for _ in range(IN_FLIGHT)]
    free, under_way, most = list(buffers), {}, 0
    deadline = time.monotonic() + LIMIT_S
    while places or under_way:
        while places and free:
            at, buffer = places.pop(), free.pop()
            buffer.write(b"\xa5" * COMMAND)
            command = protocol.rw_command(
                protocol.OPC_READ, namespace.nsid, at // namespace.lba_size, blocks, buffer, lba_size=namespace.lba_size
            )
            request = controller.io.submit(command, data_owner=buffer)
            under_way[request.command_id] = (at, buffer)
        most = max(most, len(under_way))
        for request in controller.io.poll():
            request.response.raise_for_status()
            at, buffer = under_way.pop(request.command_id)
            assert buffer.read() == content[at : at + COMMAND], f"byte {at} and on"
            free.append(buffer)
        assert time.monotonic() < deadline, f"{len(under_way)} reads did not end"
    for buffer in buffers:
        buffer.close()
    return most


def beyond_the_end(controller, namespace):
    """The status of a read whose last block is not there."""
    with controller.allocate(2 * namespace.lba_size) as buffer:
        command = protocol.rw_command(
            protocol.OPC_READ, namespace.nsid, namespace.info.size_lbas - 1, 2, buffer, lba_size=namespace.lba_size
        )
        try:
            controller.io.execute(command, data_owner=buffer, timeout=LIMIT_S)
        except protocol.NVMeStatusError as error:
            return str(error)
    return None


def main():
    address, port, subsystem, path = sys.argv[1:]
    with open(path, "rb") as file:
        content = file.read()
    with nvmeof.Controller.connect(address, subsystem, port=int(port), queue_depth=64, timeout=LIMIT_S) as controller:
        namespace = controller.namespace(1)
        with controller.allocate(len(content)) as buffer:
            namespace.read(buffer, 0)
            assert buffer.read() == content, "the bytes are not those that were put there"
            most = in_flight(controller, namespace, content)
            buffer.write(inverted(content))
            at, length = 0, namespace.lba_size
            while at < len(content):
                length = min(length, len(content) - at)
                namespace.write(buffer, (BEHIND + at) // namespace.lba_size, length // namespace.lba_size, buffer_offset=at)
                at, length = at + length, min(2 * length, controller.max_transfer_bytes)
            namespace.flush()
        refused = beyond_the_end(controller, namespace)
        seen = {
            "block": namespace.lba_size,
            "bytes": namespace.info.size_lbas * namespace.lba_size,
            "depth": controller.io.depth,
            "in_flight": most,
            "most_bytes": controller.max_transfer_bytes,
            "refused": refused,
            "version": nvmeof.__version__,
        }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
