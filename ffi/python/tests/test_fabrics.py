"""Objects behind NVMe over fabrics, by their addresses: a target in a process of its own is at the other end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager

import numpy
import pytest

import straightway

from conftest import pattern

PROGRAM = os.environ.get("STRAIGHTWAY_PROGRAM")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="STRAIGHTWAY_PROGRAM is not set; cargo xtask python sets it")


@contextmanager
def target(source, *more):
    """The addresses of namespaces that a target offers, and its process."""
    command = [PROGRAM, "target", str(source), "--listen", "127.0.0.1:0", "--json", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = json.loads(process.stdout.readline())
        yield said["namespaces"][0]["uri"], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def image(tmp_path):
    content = pattern(4 << 20)
    path = tmp_path / "image"
    path.write_bytes(content)
    return path, content


@pytest.mark.parametrize("more", [(), ("--rdma-emulated",)], ids=["tcp", "rdma-emulated"])
def test_ranges_of_a_namespace_are_those_of_the_file_behind_it(image, more):
    path, content = image
    with target(path, *more) as (uri, _), straightway.open(uri) as namespace:
        assert namespace.size == len(content)
        for offset, length in [(0, 4096), (4096, 1 << 20), (12345, 54321), (len(content) - 1, 1)]:
            buffer = namespace.read(offset, length)
            assert bytes(buffer) == content[offset : offset + length]
            assert buffer.path.transport == straightway.plan(uri).choice.transport
        into = bytearray(8192)
        namespace.read_into(memoryview(into)[512:4608], 8192)
        assert into == bytes(512) + content[8192:12288] + bytes(8192 - 4608)


def test_a_checkpoint_behind_a_namespace_is_loaded(tmp_path):
    weights = {"a": numpy.arange(100_000, dtype=numpy.float32), "b": numpy.ones((3, 5), dtype=numpy.int16)}
    path = tmp_path / "model.safetensors"
    straightway.save_file(weights, path)
    length = path.stat().st_size
    with path.open("ab") as file:
        file.truncate((length + 4095) // 4096 * 4096)
    with target(path) as (uri, _):
        loaded = straightway.load_file(f"{uri}&len={length}")
        for name, array in weights.items():
            numpy.testing.assert_array_equal(numpy.asarray(loaded[name]), array)


def test_a_target_that_is_gone_ends_reads_with_an_error_in_time(image):
    path, content = image
    with target(path) as (uri, process), straightway.open(uri) as namespace:
        assert bytes(namespace.read(0, 4096)) == content[:4096]
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(straightway.Error) as caught:
            namespace.read(1 << 20, 1 << 20, deadline=3.0)
        assert isinstance(caught.value, OSError)
        assert caught.value.remedy


def test_a_subsystem_that_is_not_there_is_not_found_in_time(image):
    path, _ = image
    with target(path) as (uri, _):
        wrong = uri.replace("straightway:target", "straightway:other")
        assert wrong != uri
        with pytest.raises(straightway.Error) as caught:
            straightway.open(wrong)
        assert caught.value.location and "other" in caught.value.location
