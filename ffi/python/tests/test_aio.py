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


@pytest.fixture
def samples(tmp_path):
    """Forty files of a length each, and the folder that they lie in."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03}").write_bytes(bytes([number]) * (number + 1))
    return folder


def test_batches_are_awaited_while_others_run(samples):
    # Each sample needs a turn of the event loop: a wait that held the loop would be the end of it.
    turns = threading.Semaphore(0)

    def mapped(sample):
        assert turns.acquire(timeout=30)
        return sample.data

    async def other() -> None:
        while True:
            turns.release()
            await asyncio.sleep(0.0005)

    async def main() -> None:
        task = asyncio.ensure_future(other())
        seen = []
        with straightway.Loader(samples, 4, seed=3, epochs=2, map=mapped) as loader:
            async for batch in loader:
                seen.append((batch.epoch, list(batch.samples)))
            assert await anext(loader, None) is None
        task.cancel()
        with straightway.Loader(samples, 4, seed=3, epochs=2) as loader:
            assert seen == [(batch.epoch, list(batch.samples)) for batch in loader]

    asyncio.run(main())


def test_a_cancelled_wait_loses_no_batch(samples):
    gate = threading.Event()

    def held(sample):
        assert gate.wait(30)
        return sample.data

    async def main() -> None:
        with straightway.Loader(samples, 4, seed=5, epochs=1, map=held) as loader:
            start = loader.state_dict()
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(loader), 0.05)
            # The caller has no batch: neither before nor after there is one.
            assert loader.state_dict() == start
            gate.set()
            while not loader._pending[1].done():
                await asyncio.sleep(0.001)
            assert loader.state_dict() == start
            first = await anext(loader)
            after = loader.state_dict()
            assert after != start
            # A sync caller gets what a cancelled task waited for, too.
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0)
            with pytest.raises(straightway.ApiMisuse, match="task waits"):
                await anext(loader)
            for misused in [lambda: next(loader), lambda: loader.load_state_dict(start)]:
                with pytest.raises(straightway.ApiMisuse, match="task waits"):
                    misused()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            seen = [number for batch in [first, *loader] for number in batch.samples]
            assert len(seen) == 40 and sorted(seen) == list(range(40))
            # What was begun at another place is not given at this one.
            loader.load_state_dict(start)
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0)
            loader.load_state_dict(after)
            assert [number for batch in loader for number in batch.samples] == seen[4:]

    asyncio.run(main())


def test_an_error_inside_is_raised_where_the_batch_is_awaited(samples):
    def odd(sample):
        if sample.number == 6:
            raise LookupError("nothing for six")
        if sample.number == 9:
            raise StopIteration
        return sample.data

    async def main() -> None:
        loader = straightway.Loader(samples, 4, shuffle=False, map=odd)
        assert list((await anext(loader)).samples) == [0, 1, 2, 3]
        with pytest.raises(LookupError, match="six"):
            await anext(loader)
        # As a coroutine that raises it itself.
        with pytest.raises(RuntimeError, match="StopIteration"):
            await anext(loader)
        assert list((await anext(loader)).samples) == [12, 13, 14, 15]
        loader.close()
        with pytest.raises(straightway.Closed):
            await anext(loader)

    asyncio.run(main())


def test_a_loader_serves_one_loop_after_another_and_its_thread_ends_with_it(samples):
    loader = straightway.Loader(samples, 4, shuffle=False)
    for number in range(3):

        async def one() -> list[int]:
            return list((await anext(loader)).samples)

        assert asyncio.run(one()) == list(range(number * 4, number * 4 + 4))
    thread = loader._caller._thread
    assert thread.is_alive()
    del loader
    thread.join(10)
    assert not thread.is_alive()


def test_the_interpreter_ends_while_a_task_waits(script):
    done = script("""
import asyncio, os, threading, straightway, tempfile
folder = tempfile.mkdtemp()
for number in range(8):
    open(os.path.join(folder, str(number)), "w").write("x" * 10)

def never(sample):
    threading.Event().wait(0.2)
    return sample.data

async def main():
    loader = straightway.Loader(folder, 8, map=never, workers=1)
    globals()["kept"] = loader
    try:
        await asyncio.wait_for(anext(loader), 0.1)
    except asyncio.TimeoutError:
        print("left")

asyncio.run(main())
""")
    assert done.stdout == "left\n" and done.stderr == ""


def test_checkpoints_are_loaded_and_saved_while_others_run(tmp_path):
    np = pytest.importorskip("numpy")
    tensors = {f"t{number}": np.arange(50_000, dtype="f4") + number for number in range(4)}
    told = []

    async def main() -> None:
        files = await straightway.save_async(tensors, tmp_path / "saved", shard_bytes=300_000)
        assert len(files) > 2
        several = [straightway.load_async(tmp_path / "saved", framework="numpy") for _ in range(3)]
        for loaded in await asyncio.gather(*several):
            assert loaded.keys() == tensors.keys() and loaded.report
            assert all((loaded[name] == tensors[name]).all() for name in tensors)
        one = await straightway.load_async(tmp_path / "saved", tensors="t2", progress=lambda *far: told.append(far))
        assert list(one) == ["t2"] and told[-1] == (200_000, 200_000)
        with pytest.raises(straightway.NotFound):
            await straightway.load_async(tmp_path / "nothing")
        with pytest.raises(LookupError):
            await straightway.load_async(tmp_path / "saved", progress=_raise)
        with pytest.raises(straightway.AlreadyExists):
            await straightway.save_async(tensors, tmp_path / "saved")

    asyncio.run(main())


def _raise(*_: object) -> None:
    raise LookupError


def test_a_cancelled_load_ends_and_a_cancelled_save_is_whole(tmp_path):
    np = pytest.importorskip("numpy")
    tensors = {"a": np.arange(3_000_000, dtype="f4")}
    begun, go_on, ways = threading.Event(), threading.Event(), []

    class Told(dict):
        """Tells when the save looks at its tensors: one that did not begin is none at all."""

        def items(self):
            begun.set()
            return super().items()

    def progress(done: int, everything: int) -> None:
        ways.append(done)
        begun.set()
        assert go_on.wait(30)

    async def main() -> None:
        save = asyncio.ensure_future(straightway.save_async(Told(tensors), tmp_path / "saved"))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        begun.clear()
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        while not (tmp_path / "saved").exists():
            await asyncio.sleep(0.01)
        load = asyncio.ensure_future(straightway.load_async(tmp_path / "saved", progress=progress))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        go_on.set()

    # The end of the loop waits for what still runs in its threads.
    asyncio.run(main())
    assert len(ways) == 1
    assert (straightway.load(tmp_path / "saved", framework="numpy")["a"] == tensors["a"]).all()
