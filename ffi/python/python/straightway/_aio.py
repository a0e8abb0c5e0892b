"""Operations in asyncio: each event loop watches one socket, on which threads of the engine announce what is over."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from typing import Any

from ._native import Completions, Operation


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
