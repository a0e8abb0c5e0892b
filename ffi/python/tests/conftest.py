"""What the tests share: files of known bytes, and processes that must end by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A process of a test that hangs is a failure, not a wait.
LIMIT_S = 180


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that tell their position: a shifted or torn read does not compare equal."""
    words = bytearray()
    for index in range((length + 7) // 8):
        words += ((index * 0x9E3779B97F4A7C15 + seed) & (1 << 64) - 1).to_bytes(8, "little")
    return bytes(words[:length])


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, bytes]:
    """A file of a few MiB whose length is no multiple of anything."""
    content = pattern((3 << 20) + 777)
    path = tmp_path / "data"
    path.write_bytes(content)
    return path, content


def _hears_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def script(tmp_path: Path):
    """Runs a Python program in a process of its own, which takes SIGINT as one does in a terminal: what a shell starts in the
    background ignores it, and its children do."""

    def run(
        text: str, *args: object, check: bool = True, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(text)
        command = [sys.executable, str(path), *map(str, args)]
        whole = {**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=whole, preexec_fn=_hears_sigint)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
