"""Exceptions: one for each kind of error, each also the built-in exception that one would catch for it."""

from __future__ import annotations

import os
from typing import Any


class Error(Exception):
    """An error of the engine. The text names operation, object, range and remedy on one line.

    kind: stable lower-case name. code: its stable number. system_code: errno or device status, 0 if there is none.
    retry: "never", "now", "after-fence", or seconds. remedy: what to do; may be empty. verb: what was being done.
    location: the object by its name. range: (offset, length) in it. outcome: what became of a failed write: "applied",
    "not-applied", "unknown". reasons: why routes were refused, for PolicyUnmet.
    """

    kind: str = ""
    code: int = 0
    system_code: int = 0
    retry: str | float = "never"
    remedy: str = ""
    verb: str = ""
    location: str | None = None
    range: tuple[int, int] | None = None
    outcome: str | None = None
    reasons: list[str] = []

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self):
        return _again, (type(self), self.args, dict(self.__dict__))


def _again(kind: type[Error], args: tuple, fields: dict[str, Any]) -> Error:
    error = kind(*args)
    error.__dict__.update(fields)
    return error


_BASES: dict[str, tuple[type[Exception], ...]] = {
    "ApiMisuse": (ValueError,),
    "BadUri": (ValueError,),
    "NotFound": (FileNotFoundError,),
    "PermissionDenied": (PermissionError,),
    "WrongKind": (OSError,),
    "OutOfRange": (ValueError,),
    "TooLarge": (ValueError,),
    "NotRegistered": (ValueError,),
    "NoDevice": (OSError,),
    "PolicyUnmet": (RuntimeError,),
    "ShortData": (EOFError,),
    "Changed": (OSError,),
    "Io": (OSError,),
    "NoSpace": (OSError,),
    "ResourceLimit": (OSError,),
    "Busy": (BlockingIOError,),
    "DeadlineExceeded": (TimeoutError,),
    "Cancelled": (RuntimeError,),
    "Closed": (RuntimeError,),
    "ChecksumMismatch": (OSError,),
    "Protocol": (OSError,),
    "Forked": (RuntimeError,),
    "Poisoned": (RuntimeError,),
    "Unsupported": (NotImplementedError,),
    "BadFormat": (ValueError,),
    "InUse": (OSError,),
    "AlreadyExists": (FileExistsError,),
}


def _name(kind: str) -> str:
    return "".join(word.capitalize() for word in kind.split("_"))


for _class, _bases in _BASES.items():
    globals()[_class] = type(_class, (Error, *_bases), {"__module__": "straightway", "__doc__": f"See `Error`. {_class}."})

__all__ = ["Error", *_BASES]


def make(text: str, fields: dict[str, Any]) -> Error:
    """The exception for an error of the engine."""
    error = globals().get(_name(fields["kind"]), Error)(text)
    error.__dict__.update(fields)
    if isinstance(error, OSError):
        error.errno = fields["system_code"] or None
        error.strerror = os.strerror(fields["system_code"]) if fields["system_code"] > 0 else text
        error.filename = fields["location"]
    return error


def new(kind: str, text: str, location: str | None = None) -> Error:
    """An error of the Python half."""
    fields: dict[str, Any] = {"kind": kind, "code": _CODES.get(kind, 0), "system_code": 0, "location": location}
    return make(text, fields)


_CODES = {
    "api_misuse": 1,
    "out_of_range": 6,
    "cancelled": 18,
    "checksum_mismatch": 20,
    "unsupported": 24,
    "bad_format": 25,
    "already_exists": 27,
}
