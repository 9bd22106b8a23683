"""The README's first command on a machine as it comes: a fresh checkout, and a PATH with next to nothing on it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".ugro",
    ".pixi",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "tmp*",
    "*_20*",
)
# As far as anything here calls what Debian's package coreutils has.
COREUTILS = """
    basename cat chmod cp cut date dirname env false head id ln ls mkdir mktemp mv nice pwd readlink realpath rm rmdir
    sleep sort stat tail tee test touch tr true uname wc whoami
"""
MISSING = ("rsync", "uv", "uvx", "pixi", "git")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user who has just come to a machine with coreutils, a shell, Python and ssh."""
    programs = tmp_path / "bin"
    home = tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for program in [*COREUTILS.split(), "bash", "sh", "ssh", "ssh-keygen"]:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/bin:/bin")
        assert found, f"this machine itself has no {program}"
        (programs / program).symlink_to(found)
    (programs / "python3").symlink_to(Path(sys.base_prefix, "bin", "python3").resolve())
    # How pip finds its packages is the machine's matter.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or "proxy" in name.lower()
    }
    return {**kept, "PATH": str(programs), "HOME": str(home)}


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "ugro"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED, symlinks=True)
    yield folder
    shutil.rmtree(folder)  # two environments; pytest would keep them for three runs


def first_commands() -> list[str]:
    """The first two lines of commands in the README."""
    found = re.findall(
        r"^    (bin/ugro .+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    return found[:2]


def run(command: str, checkout: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_the_first_command_trains_and_so_does_the_second_call(
    checkout: Path, environ: dict[str, str]
) -> None:
    launch = next(command for command in first_commands() if " launch " in command)
    for program in MISSING:
        assert shutil.which(program, path=environ["PATH"]) is None
    name = shlex.split(launch)[shlex.split(launch).index("--name") + 1]
    assert f"{name}_" in run(launch, checkout, environ)
    again = run(launch, checkout, environ)
    assert "installing requirements" not in again
    assert "succeeded in" in again
    jobs = sorted((checkout / "experiments").glob(f"{name}_*"))
    assert len(jobs) == 2
    for job in jobs:
        assert list((job / "checkpoints").iterdir())
        assert (job / "artifacts" / "sample.txt").read_text()
