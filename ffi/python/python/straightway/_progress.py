"""How far something long is: a bar where bars can be shown, or a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Union

#: True: a bar. A function: called with what is done and what there is in all, some times a second; what it raises ends the work.
Progress = Union[bool, Callable[[int, int], object], None]


@contextmanager
def shown(progress: Progress, what: str, unit: str) -> Iterator[Callable[[int, int], object] | None]:
    """What the compiled half calls; None if nobody wants to know."""
    if not progress:
        yield None
    elif callable(progress):
        yield progress
    else:
        bar = _bar(what, unit)
        try:
            yield bar.tell
        finally:
            bar.close()


def _bar(what: str, unit: str) -> Any:
    try:
        # A widget in a notebook, a line in a terminal.
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(what, unit)
    return _Tqdm(tqdm(desc=what, unit=unit, unit_scale=unit == "B", unit_divisor=1024))


class _Tqdm:
    def __init__(self, bar: Any):
        self._bar = bar

    def tell(self, done: int, everything: int) -> None:
        self._bar.total = everything or None
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Line:
    """One line of standard error, written again."""

    def __init__(self, what: str, unit: str):
        self._what, self._unit, self._told = what, unit, ""

    def tell(self, done: int, everything: int) -> None:
        share = f" ({100 * done // everything} %)" if everything else ""
        text = f"{self._what}: {done} of {everything} {self._unit}{share}"
        if text != self._told:
            sys.stderr.write("\r" + text.ljust(len(self._told)))
            sys.stderr.flush()
            self._told = text

    def close(self) -> None:
        if self._told:
            sys.stderr.write("\n")
