"""Reads samples of objects of AIStore by its own Python SDK and prints one JSON line: what it cost.

    ais.py --peer batch|reader --port N --file-bytes N --block N --count N --depth N

`batch` asks for as many samples by a GetBatch as ours has in flight, in two threads; `reader` asks for each by a request of its own, in as many
threads. Imports, the client and one read come before the clock starts. Run by `straightway-benches ais`.
"""

import argparse
import json
import os
import random
import resource
import threading
import time


def in_threads(count, work):
    failed = []

    def guarded(which):
        try:
            work(which)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(which,)) for which in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    for name in ["port", "file-bytes", "block", "count", "depth"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    from aistore.sdk import Client

    client = Client(f"http://127.0.0.1:{args.port}")
    bucket = client.bucket("bed")
    draw = random.Random(1)
    places = [(number % 4, draw.randrange(args.file_bytes // args.block) * args.block) for number in range(args.count)]
    sums = [0] * args.depth

    def batch(which, some):
        one = client.batch(bucket=bucket)
        for shard, at in some:
            one.add(f"{shard}", start=at, length=args.block)
        for _info, data in one.get():
            if len(data) != args.block:
                raise RuntimeError("a sample is short")
            sums[which] += len(data)

    def reader(which, some):
        for shard, at in some:
            byte_range = f"bytes={at}-{at + args.block - 1}"
            data = bucket.object(f"{shard}").get_reader(byte_range=byte_range).read_all()
            if len(data) != args.block:
                raise RuntimeError("a sample is short")
            sums[which] += len(data)

    def run():
        if args.peer == "batch":
            lists = [places[at : at + args.depth] for at in range(0, len(places), args.depth)]
            in_threads(2, lambda which: [batch(which, some) for some in lists[which::2]])
        else:
            in_threads(args.depth, lambda which: reader(which, places[which :: args.depth]))

    (batch if args.peer == "batch" else reader)(0, places[:1])
    sums = [0] * args.depth
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    run()
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "ops": sum(sums) // args.block,
                "bytes": sum(sums),
                "seconds": seconds,
                "cpu_user_s": after.ru_utime - before.ru_utime,
                "cpu_sys_s": after.ru_stime - before.ru_stime,
                "peak_rss_bytes": after.ru_maxrss * 1024,
            }
        ),
        flush=True,
    )
    os._exit(0)


if __name__ == "__main__":
    main()
