"""Reads from a server of S3 on the loopback with one peer and prints one JSON line: what it cost, and a digest.

    s3.py --peer NAME --port N --file-bytes N --block N --count N --depth N

Blocks of 16 KiB are objects of their own, larger ones are ranges of one object. Imports, the client and one read come before the clock
starts. The digest is how many reads, how many bytes, and the sum of the first eight bytes of each. Run by `straightway-benches s3`.
"""

import argparse
import json
import os
import resource
import threading
import time

SMALL = 16 << 10
MASK = (1 << 64) - 1
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_REGION": "us-east-1",
    # Nobody is to look for keys anywhere else.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}


class Job:
    def __init__(self, args):
        self.endpoint = f"http://127.0.0.1:{args.port}"
        self.block, self.count, self.depth = args.block, args.count, args.depth
        self.blocks, self.large_bytes = args.file_bytes // args.block, args.file_bytes
        self.small = args.block == SMALL
        self.lock, self.reads, self.bytes, self.sum = threading.Lock(), 0, 0, 0

    def at(self, number):
        """The key, and where in it, of one read."""
        block = number % self.blocks
        return (f"small/{block:08d}", 0) if self.small else ("large", block * self.block)

    def add(self, data, length=None):
        with self.lock:
            self.reads += 1
            self.bytes += len(data) if length is None else length
            self.sum = (self.sum + int.from_bytes(bytes(data[:8]), "little")) & MASK


def in_threads(job, make):
    """Threads that each take the next number, as anybody would who has blocking calls."""
    numbers, lock = iter(range(job.count)), threading.Lock()

    def work(read):
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            read(number)

    threads = [threading.Thread(target=work, args=(make(),)) for _ in range(job.depth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def boto3(job):
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=job.depth, s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=job.endpoint, config=config)

    def make():
        memory = bytearray(job.block)

        def read(number):
            key, at = job.at(number)
            extra = {} if job.small else {"Range": f"bytes={at}-{at + job.block - 1}"}
            body, view, have = client.get_object(Bucket="bucket", Key=key, **extra)["Body"], memoryview(memory), 0
            while have < job.block:
                came = body.readinto(view[have:])
                if came == 0:
                    raise RuntimeError("the answer is short")
                have += came
            job.add(memory)

        return read

    return make, lambda: in_threads(job, make)


def obstore(job):
    import asyncio

    import obstore
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=job.endpoint, client_options={"allow_http": True}, virtual_hosted_style_request=False)

    async def read(number):
        key, at = job.at(number)
        if job.small:
            data = await (await obstore.get_async(store, key)).bytes_async()
        else:
            data = await obstore.get_range_async(store, key, start=at, length=job.block)
        job.add(memoryview(data))

    async def all_of_it():
        numbers = iter(range(job.count))

        async def work():
            for number in numbers:
                await read(number)

        await asyncio.gather(*(work() for _ in range(job.depth)))

    return lambda: lambda number: asyncio.run(read(number)), lambda: asyncio.run(all_of_it())


def s3torchconnector(job):
    from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

    client = MountpointS3Client(region="us-east-1", endpoint=job.endpoint, part_size=8 << 20, force_path_style=True)

    def small(number):
        data = b"".join(client.get_object("bucket", job.at(number)[0]))
        job.add(data)

    def large():
        """It reads ranges of its own ahead, of 8 MiB as ours, and gives them in order: one object after another."""
        for _ in range(job.count // job.blocks):
            have = 0
            for part in client.get_object("bucket", "large"):
                first = -have % job.block
                while first < len(part):
                    job.add(part[first : first + 8], job.block)
                    first += job.block
                have += len(part)
            if have != job.large_bytes:
                raise RuntimeError("the answer is short")

    if job.small:
        return lambda: small, lambda: in_threads(job, lambda: small)
    return lambda: lambda number: None, large


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    for name in ["port", "file-bytes", "block", "count", "depth"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    os.environ.update(KEYS)
    job = Job(args)
    make, run = {"boto3": boto3, "obstore": obstore, "s3torchconnector": s3torchconnector}[args.peer](job)
    make()(0)
    job.reads, job.bytes, job.sum = 0, 0, 0
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    run()
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "ops": job.reads,
                "bytes": job.bytes,
                "seconds": seconds,
                "cpu_user_s": after.ru_utime - before.ru_utime,
                "cpu_sys_s": after.ru_stime - before.ru_stime,
                "peak_rss_bytes": after.ru_maxrss * 1024,
                "checksum": f"{job.reads}-{job.bytes}-{job.sum:016x}",
            }
        ),
        flush=True,
    )
    # Threads of obstore that outlive the interpreter end the process with SIGABRT now and then, behind the job.
    os._exit(0)


if __name__ == "__main__":
    main()
