# SPDX-License-Identifier: Apache-2.0
"""KvikIO from the package index, unmodified, on the libcufile that the loader gives it.

    kvikio_round_trip.py FOLDER LIBRARY

Device memory is that of the libcuda that the loader finds. KvikIO takes any object with `__cuda_array_interface__` for a buffer.
The last line begins with `test result: ok.` if everything held.
"""

import ctypes
import os
import sys

import kvikio
import kvikio.defaults

PAGE = 4096
LENGTH = (1 << 20) + 777


class Driver:
    """What of the CUDA driver a program with a GPU buffer uses."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *args):
        result = getattr(self.library, name)(*args)
        if result:
            raise RuntimeError(f"{name}: CUDA error {result}")


class Memory:
    """Bytes on the GPU."""

    def __init__(self, driver, length, fill=0xA5):
        self.driver, self.length = driver, length
        self.at = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(self.at), ctypes.c_size_t(length))
        self.put(bytes([fill]) * length)

    @property
    def __cuda_array_interface__(self):
        return {"shape": (self.length,), "typestr": "|u1", "data": (self.at.value, False), "version": 3, "strides": None}

    def put(self, data):
        self.driver.call("cuMemcpyHtoD_v2", self.at, data, ctypes.c_size_t(len(data)))

    def get(self):
        data = ctypes.create_string_buffer(self.length)
        self.driver.call("cuMemcpyDtoH_v2", data, self.at, ctypes.c_size_t(self.length))
        return data.raw


def pattern(start, length):
    return bytes((at * 31 + at // 4093) & 0xFF for at in range(start, start + length))


def transfers(driver, path):
    """Reads and writes at places of any alignment, one thread and several."""
    passed = 0
    whole = pattern(0, LENGTH)
    with open(path, "wb") as file:
        file.write(whole)
    for threads in (1, 4):
        kvikio.defaults.set("num_threads", threads)
        for size, file_offset in [(PAGE, 0), (1 << 20, 0), (1 << 20, PAGE), (70001, 12345), (511, 1), (1, 0)]:
            memory = Memory(driver, size)
            with kvikio.CuFile(path, "r") as file:
                got = file.pread(memory, size, file_offset).get()
            assert got == min(size, LENGTH - file_offset), (size, file_offset, got)
            assert memory.get()[:got] == whole[file_offset : file_offset + got], (size, file_offset)
            passed += 1
    for size, file_offset in [(PAGE, PAGE), (1 << 19, 0), (70001, 12345)]:
        memory = Memory(driver, size)
        memory.put(pattern(5000, size))
        with kvikio.CuFile(path, "r+") as file:
            assert file.pwrite(memory, size, file_offset).get() == size
        with open(path, "rb") as file:
            assert file.read()[file_offset : file_offset + size] == pattern(5000, size), (size, file_offset)
        passed += 1
    return passed


def past_the_end(driver, path):
    """A read that ends behind the file leaves the rest of the memory alone."""
    with open(path, "wb") as file:
        file.write(pattern(0, 64 * 1024 + 1000))
    memory = Memory(driver, 64 * 1024)
    with kvikio.CuFile(path, "r") as file:
        got = file.raw_read(memory, 64 * 1024, 64 * 1024)
    assert got == 1000, got
    assert memory.get() == pattern(64 * 1024, 1000) + b"\xa5" * (64 * 1024 - 1000)
    return 1


def registered(driver, path):
    """Registered memory, and places inside it."""
    with open(path, "wb") as file:
        file.write(pattern(0, LENGTH))
    memory = Memory(driver, 1 << 20)
    kvikio.memory_register(memory)
    with kvikio.CuFile(path, "r") as file:
        assert file.raw_read(memory, 64 * 1024, PAGE, 3 * PAGE) == 64 * 1024
    assert memory.get()[3 * PAGE : 3 * PAGE + 64 * 1024] == pattern(PAGE, 64 * 1024)
    kvikio.memory_deregister(memory)
    return 1


def streams(driver, path):
    """Reads and writes in the order of a stream."""
    stream = ctypes.c_void_p()
    driver.call("cuStreamCreate", ctypes.byref(stream), 1)
    with open(path, "wb") as file:
        file.write(pattern(0, LENGTH))
    memory = Memory(driver, 1 << 20)
    with kvikio.CuFile(path, "r+") as file:
        future = file.raw_read_async(memory, stream.value, 1 << 20, 0, 0)
        assert future.check_bytes_done() == 1 << 20
        assert memory.get() == pattern(0, 1 << 20)
        memory.put(pattern(9000, 1 << 20))
        future = file.raw_write_async(memory, stream.value, 1 << 20, 0, 0)
        assert future.check_bytes_done() == 1 << 20
    with open(path, "rb") as file:
        assert file.read(1 << 20) == pattern(9000, 1 << 20)
    return 2


def main():
    folder, library = sys.argv[1:3]
    path = os.path.join(folder, "file")
    driver = Driver()
    kvikio.defaults.set("compat_mode", kvikio.CompatMode.OFF)
    passed = transfers(driver, path) + past_the_end(driver, path) + registered(driver, path) + streams(driver, path)
    with open("/proc/self/maps", encoding="ascii") as maps:
        loaded = {line.split()[-1] for line in maps if "cufile" in line.split()[-1].rsplit("/", 1)[-1]}
    assert loaded == {os.path.realpath(library)}, loaded
    print(f"test result: ok. {passed} passed; 0 failed")


if __name__ == "__main__":
    main()
