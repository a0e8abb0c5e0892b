"""Threads, signals, fork, exit: each in a process of its own."""

from __future__ import annotations

import threading
import time

import pytest

import straightway

# Memory whose first touch never returns, by userfaultfd(2): a read into it is a read from a device that does not answer.
STUCK = r"""
import ctypes, fcntl, mmap, os, platform, struct, sys
def stuck(length=1 << 20):
    number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
    handle = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC)
    if handle < 0:
        print("SKIP", os.strerror(ctypes.get_errno())); sys.exit(0)
    memory = mmap.mmap(-1, length)
    fcntl.ioctl(handle, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(handle, 0xC020AA00, struct.pack("QQQQ", start, length, 1, 0))
    return memory
"""


def ran(done) -> None:
    if done.stdout.startswith("SKIP"):
        pytest.skip(f"no userfaultfd: {done.stdout}")


def test_threads_share_an_engine(data):
    path, content = data
    file = straightway.open(path)
    wrong = []

    def work(seed: int) -> None:
        for n in range(50):
            offset = (seed * 7919 + n * 104_729) % (len(content) - 70_000)
            if bytes(file.read(offset, 65_537)) != content[offset : offset + 65_537]:
                wrong.append((seed, n))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ctrl_c_ends_a_wait_that_would_not_end(data, script):
    path, _ = data
    done = script(
        STUCK
        + r"""
import signal, threading, time, straightway
file = straightway.open(sys.argv[1])
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    file.read_into(stuck())
except KeyboardInterrupt:
    took = time.monotonic() - start
    # Without the signal it would wait for ever.
    assert took > 0.4, took
    print("interrupted")
""",
        path,
    )
    ran(done)
    assert "interrupted" in done.stdout


def test_a_wait_leaves_the_interpreter_to_others(data, script):
    path, _ = data
    done = script(
        STUCK
        + r"""
import threading, time, straightway
file = straightway.open(sys.argv[1])
thread = threading.Thread(target=lambda: file.read_into(stuck()), daemon=True)
thread.start()
turns, end = 0, time.monotonic() + 0.5
while time.monotonic() < end:
    turns += 1
assert turns > 1000 and thread.is_alive()
print("went on")
""",
        path,
    )
    ran(done)
    assert "went on" in done.stdout


def test_exit_with_a_read_that_never_ends_is_quick(data, script):
    path, _ = data
    start = time.monotonic()
    done = script(
        STUCK + "import straightway\noperation = straightway.open(sys.argv[1]).start_read_into(stuck())\nprint('bye')\n", path
    )
    ran(done)
    assert "bye" in done.stdout and done.stderr == "" and time.monotonic() - start < 20


def test_exit_with_many_reads_in_flight_is_clean(data, script):
    path, _ = data
    done = script(
        r"""
import sys, threading, straightway
engine = straightway.Engine()
file = engine.open(sys.argv[1])
operations = [file.start_read() for _ in range(100)]
targets = [bytearray(file.size) for _ in range(20)]
more = [file.start_read_into(target) for target in targets]
def forever():
    while True:
        file.read()
threading.Thread(target=forever, daemon=True).start()
print("bye")
""",
        path,
    )
    assert "bye" in done.stdout and done.stderr == ""


def test_a_child_of_a_fork_is_told_and_can_start_anew(data, script):
    path, _ = data
    done = script(
        r"""
import os, sys, straightway
engine = straightway.Engine()
file = engine.open(sys.argv[1])
content = bytes(file.read())
shared = straightway.open(sys.argv[1])
shared.read()
child = os.fork()
if child == 0:
    for old in (file, shared):
        try:
            old.read()
        except straightway.Forked as error:
            assert error.remedy or error.kind == "forked"
        else:
            os._exit(3)
    if bytes(straightway.open(sys.argv[1]).read()) != content:
        os._exit(4)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert bytes(file.read()) == content
print("both")
""",
        path,
    )
    assert "both" in done.stdout, done.stderr


def test_ctrl_c_ends_a_load(tmp_path, script):
    np = pytest.importorskip("numpy")
    straightway.save_file({"w": np.zeros(1 << 20)}, tmp_path / "m.safetensors")
    done = script(
        r"""
import itertools, os, signal, sys, threading, straightway
armed = False
def interrupt(*_):
    if armed:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
def kill():
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.003)
threading.Thread(target=kill, daemon=True).start()
caught = 0
for turn in itertools.count():
    try:
        armed = True
        straightway.load_file(sys.argv[1])
    except KeyboardInterrupt:
        caught += 1
    finally:
        armed = False
    if caught == 20:
        break
assert bytes(straightway.load_file(sys.argv[1])["w"]) == bytes(8 << 20)
print("caught", caught)
""",
        tmp_path / "m.safetensors",
    )
    assert "caught 20" in done.stdout


def test_ctrl_c_ends_a_save(tmp_path, script):
    pytest.importorskip("numpy")
    (tmp_path / "here").mkdir()
    done = script(
        r"""
import os, signal, sys, threading, time, numpy as np, straightway
tensors = {f"t{n}": np.full(32 << 20, n, np.uint8) for n in range(8)}
for turn in range(6):
    directory = os.path.join(sys.argv[1], str(turn))
    threading.Timer(0.01 + 0.02 * turn, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        straightway.save(tensors, directory)
        # The signal comes, however busy the machine is.
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        pass
    for tensor in tensors.values():
        tensor += 1
# What an interrupted save made goes in the background.
end = time.monotonic() + 60
while any(name.startswith(".") for name in os.listdir(sys.argv[1])) and time.monotonic() < end:
    time.sleep(0.05)
left = os.listdir(sys.argv[1])
assert not any(name.startswith(".") for name in left), left
# One whose bytes were all read before the signal may be there, and is whole.
for name in left:
    for n, tensor in enumerate(straightway.load(os.path.join(sys.argv[1], name), framework="numpy").values()):
        assert (tensor == n + int(name)).all(), (name, n)
assert len(left) < 6, left
print("ended", 6 - len(left))
""",
        tmp_path / "here",
    )
    assert "ended" in done.stdout
