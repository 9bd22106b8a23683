"""The rank that began a failure is named, with the last line of its exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.ugro import Ugro

SLOW_TO_END = """
import atexit, os, sys, time
print("ready", flush=True)
time.sleep(1)
if os.environ["RANK"] == "1":
    # As an interpreter with much to tidy up.
    atexit.register(time.sleep, 20)
    raise ValueError("the loss is nan")
time.sleep(0.5)
raise RuntimeError("Connection closed by peer")
"""
PLAIN = """
import os, time
print("ready", flush=True)
time.sleep(1)
if os.environ["RANK"] == "1":
    raise KeyError("text")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("script", "exception"),
    [(SLOW_TO_END, "ValueError: the loss is nan"), (PLAIN, "KeyError: 'text'")],
    ids=["slow to end", "plain"],
)
def test_the_culprit_is_named_by_its_exception(
    lab: Lab, hosts: list[LabHost], tmp_path: Path, script: str, exception: str
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "wake.py").write_text(script)
    ugro = Ugro(lab, tmp_path, scripts, hosts=2)
    try:
        done = ugro.run("launch", "--name", "exp1", "--script", "wake.py")
        assert done.returncode == 7, done.stdout + done.stderr
        assert f"rank 1 on lab1: {exception}" in done.stderr
        cause = ugro.job("exp1").state()["cause"]
        assert cause["message"] == f"rank 1 on lab1: {exception}"
        assert cause["last_lines"][-1] == exception
    finally:
        ugro.close()
