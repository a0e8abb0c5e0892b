"""Passes NVMe/TCP connections on and writes down their units: record.py LISTEN_PORT ADDRESS PORT FILE [all].

One unit a line: the number of its connection, `>` from the host or `<` from the controller, its bytes in hex, where `00x1000` is so
many times that byte. Of commands of one sort (opcode, what they ask for, how they bring data) on one sort of queue the first is written,
with all that belongs to it; connections without such a command are left out. With `all`, nothing is. Ends when it is killed; the file is
whole after every unit.
"""

import re
import socket
import struct
import sys
import threading

COMMAND, RESPONSE, H2C, C2H, R2T = 4, 5, 6, 7, 9
LOCK = threading.Lock()
SEEN = set()
ALL = sys.argv[5:] == ["all"]


def short(unit):
    """Hex, runs of sixteen and more of one byte told as such."""
    out, at = [], 0
    for run in re.finditer(rb"(?s)(.)\1{15,}", unit):
        out += [unit[at : run.start()].hex()] if run.start() > at else []
        out.append(f"{run.group()[:1].hex()}x{len(run.group())}")
        at = run.end()
    return " ".join(out + ([unit[at:].hex()] if at < len(unit) else []))


def sort_of(unit, is_io):
    """What a command asks for, so far as it is of another sort."""
    opcode, kind = unit[8], unit[12]
    if opcode == 0x7F:
        return (is_io, opcode, kind, unit[52:56] if kind in (0, 4) else b"")
    if is_io:
        return (True, opcode, len(unit) > 72, unit[0x2F])
    return (False, opcode, unit[48:52])


class Recorded:
    """One connection."""

    def __init__(self, number, file):
        self.number, self.file, self.kept, self.is_io = number, file, set(), False
        self.held = []

    def unit(self, way, unit):
        kind = unit[0]
        with LOCK:
            if kind == COMMAND:
                (cid,) = struct.unpack_from("<H", unit, 10)
                if unit[8] == 0x7F and unit[12] == 1:
                    self.is_io = unit[50:52] != b"\0\0"
                sort = sort_of(unit, self.is_io)
                (self.kept.discard if sort in SEEN and not ALL else self.kept.add)(cid)
                SEEN.add(sort)
                keep = cid in self.kept
            elif kind == RESPONSE:
                keep = struct.unpack_from("<H", unit, 20)[0] in self.kept
            elif kind in (H2C, C2H, R2T):
                keep = struct.unpack_from("<H", unit, 8)[0] in self.kept
            else:
                # How the connection begins, or ends.
                self.held.append((way, unit))
                keep = False
            if keep:
                for way, unit in [*self.held, (way, unit)]:
                    print(self.number, way, short(unit), file=self.file, flush=True)
                self.held = []


def read(sock, count):
    out = b""
    while len(out) < count:
        piece = sock.recv(count - len(out))
        if not piece:
            raise EOFError
        out += piece
    return out


def pump(recorded, way, source, sink):
    try:
        while True:
            common = read(source, 8)
            unit = common + read(source, struct.unpack_from("<I", common, 4)[0] - 8)
            recorded.unit(way, unit)
            sink.sendall(unit)
    except (EOFError, OSError):
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def main():
    port, address, to, path = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    server = socket.create_server(("127.0.0.1", port))
    with open(path, "w") as file:
        number = 0
        while True:
            host, _ = server.accept()
            controller = socket.create_connection((address, to))
            recorded = Recorded(number, file)
            number += 1
            for sock in (host, controller):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, source, sink in ((">", host, controller), ("<", controller, host)):
                threading.Thread(target=pump, args=(recorded, way, source, sink), daemon=True).start()


main()
