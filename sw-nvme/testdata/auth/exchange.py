"""Prints SHA-256 of the messages of the exchanges in src/auth/exchange_tests.rs, made with Python's own hashes and pow.

Base specification 2.1, section 8.3.5.5; the primes by the formula of RFC 7919 appendix A. Run: python3 exchange.py
"""

import hashlib
import hmac
import struct

HOST, SUBSYSTEM = b"nqn.2026-11.io.example:host", b"nqn.2026-11.io.example:one"
MORE = {2048: 560316, 3072: 2625351, 4096: 5736041, 6144: 15705020, 8192: 10965728}
HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
GROUPS = {1: 2048, 2: 3072, 3: 4096, 4: 6144, 5: 8192}
T_ID, S1, S2 = 0x1234, 0x01020304, 0x0A0B0C0D


def prime(bits):
    term, total, n = 1 << (bits + 70), 0, 0
    while term:
        total, n = total + term, n + 1
        term //= n
    return 2**bits - 2 ** (bits - 64) + ((total >> 200) + MORE[bits]) * 2**64 - 1


def key(byte, name):
    return hmac.new(bytes([byte]) * 32, name + b"NVMe-over-Fabrics", "sha256").digest()


def exchange(hash_id, group):
    name = HASHES[hash_id]
    size = hashlib.new(name).digest_size
    c1, c2 = b"\xc1" * size, b"\xc2" * size
    ours, theirs, session = b"", b"", None
    if group:
        bits = GROUPS[group]
        p, x, y = prime(bits), int.from_bytes(b"\x5e" * 64, "big"), int.from_bytes(b"\x3d" * 64, "big")
        theirs, ours = (pow(2, e, p).to_bytes(bits // 8, "big") for e in (x, y))
        session = hashlib.new(name, pow(2, x * y, p).to_bytes(bits // 8, "big")).digest()

    def response(of, challenge, number, words):
        if session:
            challenge = hmac.new(session, challenge, name).digest()
        text = challenge + struct.pack("<IHB", number, T_ID, 0) + words
        return hmac.new(of, text, name).digest()

    r1 = response(key(0x11, HOST), c1, S1, b"HostHost" + HOST + b"\0" + SUBSYSTEM)
    r2 = response(key(0x22, SUBSYSTEM), c2, S2, b"Controller" + SUBSYSTEM + b"\0" + HOST)
    lists = bytes([1, 2, 3]).ljust(30, b"\0") + bytes([1, 2, 3, 4, 5, 0]).ljust(30, b"\0")
    negotiate = struct.pack("<BBHHBB", 0, 0, 0, T_ID, 0, 1) + bytes([1, 0, 3, 6]) + lists
    challenge = struct.pack("<BBHHBBBBHI", 1, 1, 0, T_ID, size, 0, hash_id, group, len(theirs), S1) + c1 + theirs
    reply = struct.pack("<BBHHBBBBHI", 1, 2, 0, T_ID, size, 0, 1, 0, len(ours), S2) + r1 + c2 + ours
    success1 = struct.pack("<BBHHBBB7x", 1, 3, 0, T_ID, size, 0, 1) + r2
    success2 = struct.pack("<BBHH10x", 1, 4, 0, T_ID)
    return hashlib.sha256(negotiate + challenge + reply + success1 + success2).hexdigest()


for one in [(1, 0), (2, 0), (3, 1), (1, 2), (2, 5)]:
    print(*one, exchange(*one))
