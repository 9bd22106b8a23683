"""Running groups of tests, each in a pytest of its own, and counting their results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dev.groups import Group, files_of
from ugro_tasks.cli.show.format import note
from ugro_tasks.errors import ToolMissing, UsageError

CHECKOUT = Path(__file__).resolve().parents[1]
# Much of the time is spent waiting for hosts: two workers, each with a lab of its own.
WORKERS = 2
WHOLE_HASH = re.compile("[0-9a-f]{40}")
PYTEST_ROOT = "PYTEST_DEBUG_TEMPROOT"
# torch's compiler makes an empty folder for each user, uv an empty lock for each environment; both reuse them.
REUSED = ("torchinductor_", "uv-")
NO_TESTS = 5  # pytest's exit code where nothing was selected
# For processes that clean up after others, which were killed.
CLEAN_UP_SECONDS = 3.0


@dataclass(kw_only=True)
class Result:
    """The result of one pytest."""

    name: str
    part: str = "all"
    seconds: float
    code: int
    minutes: float | None = None
    """The group's limit, in minutes on two idle cores."""
    passed: int = 0
    failed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """How many tests were skipped, by the reason."""
    left_behind: tuple[str, ...] = ()
    """The names of temporary files and folders that nobody removed."""

    @property
    def good(self) -> bool:
        """Return whether pytest succeeded and left nothing; a flag like -k may leave a group without tests."""
        return self.code in {0, NO_TESTS} and not self.left_behind


class Programs:
    """Runs programs in the checkout, with their own output and their own handling of Ctrl-C."""

    def __init__(self) -> None:
        self.interrupted = False

    def run(self, title: str, argv: Sequence[str], **environ: str) -> int:
        """Run a program to its end, with these variables besides; return its exit code."""
        note(f"== {title}")
        before = signal.signal(signal.SIGINT, self._note_interrupt)
        try:
            return subprocess.run(
                argv, cwd=CHECKOUT, env=os.environ | environ, check=False
            ).returncode
        finally:
            signal.signal(signal.SIGINT, before)

    def _note_interrupt(self, *_: object) -> None:
        self.interrupted = True


def program(name: str) -> str:
    """Find a program beside this Python; raises ToolMissing."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ToolMissing(
            f"{path} is missing; `bin/ugro check` and `bin/ugro test` install it"
        )
    return str(path)


def run_groups(
    groups: Sequence[Group], arguments: Sequence[str], commit: str | None
) -> list[Result]:
    """Run groups one after the other, with these further arguments for pytest.

    With a commit, only a part of each slow group is run, drawn by the commit. Ctrl-C ends the
    running group, and no other is begun.
    """
    programs = Programs()
    files = files_with_tests()
    results = []
    for group in groups:
        words = list(group.arguments)
        title = f"tests: {group.name}"
        part = "all"
        if commit and group.drawn:
            words += ["--drawn", f"{commit}:{group.drawn}"]
            part = f"{group.drawn} drawn"
            title += f", {part} by the commit; again: {again(group, commit)}"
        words += [*files_of(group, files), *arguments]
        result = _run_pytest(programs, title, words)
        result.name = group.name
        result.minutes = group.minutes
        result.part = part
        results.append(result)
        if programs.interrupted:
            break
    return results


def run_named(arguments: Sequence[str]) -> list[Result]:
    """Run the tests named in the arguments for pytest, whatever their group."""
    return [_run_pytest(Programs(), "tests", arguments)]


def names_tests(arguments: Sequence[str]) -> bool:
    """Return whether one of the arguments for pytest is a path of tests."""
    beginnings = ("tests/", "./tests")
    return any(word == "tests" or word.startswith(beginnings) for word in arguments)


def again(group: Group, commit: str | None) -> str:
    """Return the command for the same part of a group."""
    return f"bin/ugro test --group {group.name} --part {commit}"


def files_with_tests() -> list[str]:
    """Return the path of every test file, from the checkout's root."""
    return [
        path.relative_to(CHECKOUT).as_posix()
        for path in CHECKOUT.glob("tests/**/test_*.py")
    ]


def commit_of(name: str) -> str:
    """Return the full hash of a commit; raises ToolMissing or UsageError.

    A full hash is returned as it is, even if git does not know it.
    """
    if WHOLE_HASH.fullmatch(name):
        return name
    if shutil.which("git") is None:
        raise ToolMissing(
            "git is not on PATH; it finds the commit that draws a part of the slow groups: install git"
        )
    # The checkout may be another user's, as in a container; rev-parse runs nothing of it.
    trusted = ["-c", f"safe.directory={CHECKOUT}"]
    argv = ["git", *trusted, "rev-parse", "--verify", f"{name}^{{commit}}"]
    done = subprocess.run(
        argv, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UsageError(
            f"--part {name}: git finds no such commit in {CHECKOUT} ({done.stderr.strip()}). Give a whole hash"
        )
    return done.stdout.strip()


def _run_pytest(programs: Programs, title: str, arguments: Sequence[str]) -> Result:
    begun = time.monotonic()
    plugins = ["-p", "tests.left_out", "-p", "dev.pytest_group"]
    shared = ["-n", str(WORKERS), "--dist", "loadgroup"]
    # A short name: the path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        tally = Path(folder, "tally.json")
        argv = [program("pytest"), *plugins, "--tally", str(tally), *shared, *arguments]
        # Pytest's own folders stay where one looks for them after a failure.
        root = os.environ.get(PYTEST_ROOT) or tempfile.gettempdir()
        code = programs.run(title, argv, **{"TMPDIR": folder, PYTEST_ROOT: root})
        counts = json.loads(tally.read_text()) if tally.exists() else {}
        tally.unlink(missing_ok=True)
        left = _left_behind_for_good(Path(folder))
    seconds = time.monotonic() - begun
    return Result(name=title, seconds=seconds, code=code, left_behind=left, **counts)


def _left_behind_for_good(folder: Path) -> tuple[str, ...]:
    """Return the names that are still there once what outlives pytest for a moment has gone as well."""
    deadline = time.monotonic() + CLEAN_UP_SECONDS
    while left := tuple(sorted(left_behind(folder))):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def left_behind(folder: Path) -> Iterator[str]:
    """Yield the names in a folder for temporary files, besides those that a program reuses."""
    for path in folder.iterdir():
        if not path.name.startswith(REUSED):
            yield path.name
