"""What it costs to have memory for a checkpoint: CPU seconds per GiB, by the way it is made, and of the read into it.

    fresh_memory.py FILE [--rounds N]

FILE is half a GiB or more, on storage that takes O_DIRECT; the script takes it out of the page cache before each read. Every way
runs in a process of its own, in turn, N times; the table has medians. "make" is mapping and populating before the read,
"read" is O_DIRECT reads of 1 MiB by four threads (`sendfile` and `mmap` for the ways that say so), with the page faults that
happen inside. Decision record 0009 rests on it. A pool of huge pages (hugetlb) must be there, or that way is left out:
    sysctl vm.nr_hugepages=300      # for half a GiB
"""

import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import threading

PIECE, THREADS, HUGE = 1 << 20, 4, 2 << 20
# linux include/uapi/asm-generic/mman-common.h and mman.h
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 14, 15, 22, 23
MAP_POPULATE, MAP_HUGETLB = 0x8000, 0x40000
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def in_threads(size, work):
    """`work(start, end)` for each thread's share of whole huge pages."""
    share = -(-size // THREADS // HUGE) * HUGE
    threads = [threading.Thread(target=work, args=(at, min(at + share, size))) for at in range(0, size, share)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


def address(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def anonymous(size, *advice, flags=0, by=None):
    memory = mmap.mmap(-1, size, flags=PRIVATE | flags)
    base = address(memory)
    for one in advice:
        if one == MADV_POPULATE_WRITE and by == "threads":
            in_threads(size, lambda start, end: libc.madvise(base + start, end - start, one))
        elif libc.madvise(base, size, one):
            raise OSError(ctypes.get_errno(), "madvise")
    return memory


def shared(size, *advice):
    fd = os.memfd_create("fresh")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    for one in advice:
        if libc.madvise(address(memory), size, one):
            raise OSError(ctypes.get_errno(), "madvise")
    return memory


def direct(path, memory, size):
    fd, view = os.open(path, os.O_RDONLY | os.O_DIRECT), memoryview(memory)

    def work(start, end):
        for at in range(start, end, PIECE):
            assert os.preadv(fd, [view[at : at + PIECE]], at) > 0

    in_threads(size, work)


def sendfile(path, memory, size):
    source, target, done = os.open(path, os.O_RDONLY), os.memfd_create("copied"), 0
    while done < size:
        done += os.sendfile(target, source, None, size - done)


def view(path, memory, size):
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    if libc.madvise(address(mapped), size, MADV_POPULATE_READ):
        raise OSError(ctypes.get_errno(), "madvise")


WAYS = {
    "4 KiB pages, faulted by the read": (lambda n: anonymous(n, MADV_NOHUGEPAGE), direct),
    "4 KiB pages, MAP_POPULATE": (lambda n: anonymous(n, flags=MAP_POPULATE), direct),
    "huge pages (THP), faulted by the read": (lambda n: anonymous(n, MADV_HUGEPAGE), direct),
    "huge pages (THP), populated": (lambda n: anonymous(n, MADV_HUGEPAGE, MADV_POPULATE_WRITE), direct),
    "huge pages (THP), populated by 4 threads": (
        lambda n: anonymous(n, MADV_HUGEPAGE, MADV_POPULATE_WRITE, by="threads"),
        direct,
    ),
    "pool of huge pages (hugetlb), populated": (
        lambda n: anonymous(n, MADV_POPULATE_WRITE, flags=MAP_HUGETLB),
        direct,
    ),
    "memfd, huge pages asked for, populated": (lambda n: shared(n, MADV_HUGEPAGE, MADV_POPULATE_WRITE), direct),
    "memfd, filled by sendfile from the page cache": (lambda n: None, sendfile),
    "a view of the page cache (mmap, populated)": (lambda n: None, view),
    "kept: huge pages (THP) of a load before": (None, direct),
}


def cost(work):
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    row = [after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt]
    return result, row


def one(way, path):
    size = os.stat(path).st_size // HUGE * HUGE
    make, read = WAYS[way]
    if make is None:
        memory, made = anonymous(size, MADV_HUGEPAGE, MADV_POPULATE_WRITE), [0, 0, 0]
    else:
        memory, made = cost(lambda: make(size))
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    _, reading = cost(lambda: read(path, memory, size))
    gib = size / (1 << 30)
    sys.stdout.write(json.dumps([value / gib for value in made + reading]) + "\n")
    sys.stdout.flush()
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return one(args.way, args.file)
    rows = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            # Memory that the host of a virtual machine has to find first would be paid for by whoever comes next.
            anonymous(4 * os.stat(args.file).st_size // HUGE * HUGE, MADV_HUGEPAGE, MADV_POPULATE_WRITE)
            command = [sys.executable, __file__, args.file, "--way", way]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                rows[way].append(json.loads(done.stdout))
            else:
                print(f"left out: {way}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    print("| CPU s per GiB | make | read | both | of both, user | faults |\n|---|---|---|---|---|---|")
    for way, runs in rows.items():
        if runs:
            mu, ms, mf, ru, rs, rf = (statistics.median(column) for column in zip(*runs))
            print(f"| {way} | {mu + ms:.3f} | {ru + rs:.3f} | {mu + ms + ru + rs:.3f} | {mu + ru:.3f} | {mf + rf:.0f} |")


if __name__ == "__main__":
    main()
