"""Writes and reads our target by TrueNAS's client in pure Python: pynvmeof.py PORT SUBSYSTEM LOG.

LOG gets what the whole namespace must be afterwards. `cargo xtask peers` runs it.
"""

import random
import sys
import types
import uuid

from nvmeof_client import NVMeoFClient
from nvmeof_client.protocol import fabric_commands
from nvmeof_client.protocol.types import ControllerConfiguration

# It asks for all command sets without a look at what the controller has (CAP.CSS); ours has the one.
ControllerConfiguration.CSS_ALL_SUPPORTED = 0
# It makes a HOSTID for each queue. A host has one, and our target holds its queues to it.
HOST = uuid.uuid4()
fabric_commands.uuid = types.SimpleNamespace(uuid4=lambda: HOST)

BYTES = 8 << 20


def main() -> None:
    port, subsystem, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    expected = bytearray(BYTES)
    chance = random.Random(11)
    client = NVMeoFClient("127.0.0.1", subsystem, port=port, timeout=20.0)
    client.connect()
    assert client.list_namespaces() == [1], client.list_namespaces()
    info = client.get_namespace_info(1)
    block = info.logical_block_size
    blocks = BYTES // block
    assert info.namespace_size == blocks, info
    # In a capsule, and by R2T; the first and the last block.
    cases = [(0, 1), (blocks - 1, 1), (3, 8192 // block), (100, 131072 // block)]
    # Of a read it takes one unit of data, and our target sends 128 KiB in one.
    cases += [(chance.randrange(blocks - 64), chance.randrange(1, 32)) for _ in range(40)]
    for lba, count in cases:
        data = chance.randbytes(count * block)
        client.write_data(1, lba, data)
        expected[lba * block : (lba + count) * block] = data
        assert client.read_data(1, lba, count) == data, (lba, count)
    client.flush_namespace(1)
    for lba in range(0, blocks, 131072 // block):
        count = min(131072 // block, blocks - lba)
        assert client.read_data(1, lba, count) == expected[lba * block : (lba + count) * block], lba
    client.disconnect()
    with open(log, "wb") as out:
        out.write(expected)


main()
