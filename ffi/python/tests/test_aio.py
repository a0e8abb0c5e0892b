"""asyncio: many at once, cancelling, more than one loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

import straightway


def test_many_reads_are_awaited_together(data):
    path, content = data

    async def main() -> None:
        file = straightway.open(path)
        spans = [((n * 7919) % 2_000_000, 1 + n * 37) for n in range(500)]
        buffers = await asyncio.gather(*(file.read_async(offset, length) for offset, length in spans))
        for (offset, length), buffer in zip(spans, buffers):
            assert bytes(buffer) == content[offset : offset + length]
        target = bytearray(5000)
        way = await file.read_into_async(target, 100)
        assert target == content[100:5100] and way.bytes == 5000
        assert bytes(await file.read_async(0, 0)) == b""

    for _ in range(3):
        asyncio.run(main())


def test_errors_arrive_where_they_are_awaited(data):
    path, _ = data

    async def main() -> None:
        file = straightway.open(path)
        with pytest.raises(straightway.OutOfRange):
            await file.read_async(1 << 40, 1)
        # Found out by the kernel, after the start.
        path.write_bytes(b"short")
        with pytest.raises(straightway.Error) as caught:
            await file.read_async(8192, 4096)
        assert caught.value.kind in {"short_data", "changed"}

    asyncio.run(main())


def test_a_cancelled_task_gives_up_its_read(data):
    path, content = data

    async def main() -> None:
        file = straightway.open(path)
        tasks = [asyncio.ensure_future(file.read_async()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            if isinstance(result, BaseException):
                assert n % 2 == 0 and isinstance(result, asyncio.CancelledError)
            else:
                assert bytes(result) == content
        assert not any(isinstance(result, BaseException) for result in results[1::2])

    asyncio.run(main())


def test_loops_in_many_threads_do_not_meet(data):
    path, content = data
    file = straightway.open(path)
    wrong = []

    async def main(seed: int) -> None:
        for n in range(30):
            offset = (seed * 50_021 + n * 1009) % 2_000_000
            if bytes(await file.read_async(offset, 4097)) != content[offset : offset + 4097]:
                wrong.append((seed, n))

    threads = [threading.Thread(target=asyncio.run, args=(main(seed),)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
