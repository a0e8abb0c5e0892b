"""docs/tutorial.md, as it is written: files, shell commands and Python in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/tutorial.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIMIT_S = 300


def test_the_tutorial_runs_as_written(tmp_path: Path):
    pytest.importorskip("torch", reason="torch is not installed")
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 8
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    program, shown = "", ""

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
        return done.stdout

    for language, name, text in blocks:
        if (language, name) == ("sh", "install"):
            # Whoever runs this test has done that.
            continue
        if name:
            (tmp_path / name).write_text(text)
        elif language == "python":
            # One program that grows: later blocks use what earlier ones made.
            program += text
            shown += run([sys.executable, "-c", program])
        else:
            shown += run(["bash", "-e", "-c", text])
    assert "a rank died" in shown and "goes on at step 20" in shown and "after 30 steps, in epoch 1" in shown
    assert "720 samples in 6 objects" in shown and "starved" in shown
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000010", "step-000020", "step-000030"]
