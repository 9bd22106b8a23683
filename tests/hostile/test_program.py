"""Bad words given to the program itself, a process of its own: once for each kind, as a shell hands them over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.running import ROOT, tree
from tests.hostile.strategies import INJECTIONS
from tests.hostile.test_words import place, said

__all__ = ["place"]


def run(place: Path, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(place.parent),
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        [sys.executable, "-m", "ugro_tasks.cli.program", *words],
        cwd=place, env=environ, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["launch", "--name", b"\xff\x1b[31m"], 2, id="name"),
        pytest.param(["launch", "--name", "n", "--env", b"A=\xff"], 2, id="env"),
        pytest.param(["launch", "--name", "n", "--args", b"'\xff\x1b"], 2, id="args"),
        pytest.param(
            ["launch", "--name", "n", "--set", "training.seed=!!bool x"], 2, id="set"
        ),
        pytest.param(
            ["launch", "--name", "n", "--set", "training.seed=" + "[" * 100_000],
            2,
            id="deep set",
        ),
        pytest.param(["launch", "--name", "n", "--epochs", "9" * 5000], 2, id="epochs"),
        pytest.param(["launch", "--resume", b"\xff\x9b31m"], 4, id="resume"),
        pytest.param(["status", b"\xff\xe2\x80\xae"], 4, id="status"),
        pytest.param(["clean", b"\xff"], 4, id="clean"),
        pytest.param(["logs", "exp1", "--rank", b"\xff"], 2, id="rank"),
        pytest.param(["status", "--cluster", b"\xff\x1b[2J/"], 3, id="cluster"),
        pytest.param([b"\xff\x1b[31m"], 2, id="task"),
    ],
)
def test_the_program_itself_refuses_with_its_code(
    place: Path, words: list[str | bytes], code: int
) -> None:
    before = tree(place)
    done = run(place, *words)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert not re.search(
        rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80\xae",
        done.stdout + done.stderr,
    )
    assert tree(place) == before


@pytest.mark.parametrize("injection", INJECTIONS)
def test_no_word_is_run_by_a_shell(place: Path, tmp_path: Path, injection: str) -> None:
    mark = tmp_path / "owned"
    word = injection.format(mark=mark)
    for words in (
        ["status", f"--name={word}"],
        ["launch", f"--name={word}"],
        ["logs", f"--name={word}", "--rank=0"],
    ):
        assert said(place, *words).code in {2, 4}
    assert not mark.exists()
