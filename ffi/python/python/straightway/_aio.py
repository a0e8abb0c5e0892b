"""asyncio. Reads: each event loop watches one socket, on which threads of the engine announce what is over. What has no such
announcement (batches of a loader, loads and saves as a whole) waits in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ._native import Completions, Operation
from ._progress import Progress, shown

_T = TypeVar("_T")


class _Hub:
    """The operations that one loop waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.completions = Completions()
        self.tokens = itertools.count()
        self.waiting: dict[int, tuple[Operation, asyncio.Future[Any]]] = {}
        loop.add_reader(self.completions.fileno(), self.wake)

    def wake(self) -> None:
        for token in self.completions.drain():
            entry = self.waiting.get(token)
            if entry is None or entry[1].done():
                continue
            operation, future = entry
            try:
                over = operation.poll(self.completions, token)
            except BaseException as error:
                future.set_exception(error)
                continue
            if over is not None:
                future.set_result(over[0])


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


async def finish(operation: Operation) -> Any:
    """What `operation` comes to. Cancelling the task ends the operation early."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    token = next(hub.tokens)
    future: asyncio.Future[Any] = loop.create_future()
    hub.waiting[token] = (operation, future)
    try:
        over = operation.poll(hub.completions, token)
        if over is not None:
            return over[0]
        return await future
    except asyncio.CancelledError:
        operation.cancel()
        raise
    finally:
        del hub.waiting[token]


class Caller:
    """A thread that makes calls which wait, one after the other, begun with the first one. It ends with its owner."""

    def __init__(self, owner: object, name: str):
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # The interpreter does not wait for it: whoever owns it ends its calls, see `join`.
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self._thread.start()
        self.process = os.getpid()
        weakref.finalize(owner, self._calls.put, None).atexit = False

    def begin(self, call: Callable[[], Any]) -> Future[Any]:
        """Makes the call when those before it are over."""
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def join(self, seconds: float) -> None:
        """Ends it after the calls that were begun."""
        self._calls.put(None)
        self._thread.join(seconds)


def _serve(calls: queue.SimpleQueue[Any]) -> None:
    while (entry := calls.get()) is not None:
        call, future = entry
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        # Its result is not kept until the next call comes.
        del entry, call, future


async def ended(future: Future[Any]) -> None:
    """Waits until `future` has what a call in a thread came to. Cancelling the task ends the wait, not the call."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not told.done():
            told.set_result(None)

    def tell(_: Future[Any]) -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:
            # The loop was closed: nobody waits.
            pass

    future.add_done_callback(tell)
    await told


class _Gone(Exception):
    """Whoever wanted the result was cancelled."""


async def while_wanted(call: Callable[[Callable[[int, int], object]], _T], progress: Progress, what: str) -> _T:
    """A call with a progress function, in a thread of the loop's executor. Cancelling the task ends the call at its next report of
    progress, some times a second; the task ends at once."""
    gone = threading.Event()

    def run() -> _T:
        with shown(progress, what, "B") as tell:

            def report(done: int, everything: int) -> None:
                if gone.is_set():
                    raise _Gone
                if tell is not None:
                    tell(done, everything)

            return call(report)

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        gone.set()
        raise
