"""check, test, chaos: tasks for those who work on UGRO itself. They read the checkout, so only a checkout has them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from invoke.exceptions import Exit

from ..errors import ToolMissing
from .common import JSON_HELP, task, whole

CHECKOUT = Path(__file__).resolve().parents[2]

WORKERS = 2

CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports", "--no-logo"],
}
FIXES = {"ruff check": ["ruff", "check", "--fix"], "ruff format": ["ruff", "format"]}


def in_checkout() -> bool:
    """Whether this package lies in its repository, not in some site-packages."""
    return (CHECKOUT / "pyproject.toml").is_file()


@task(help={"fix": "mend what ruff can mend", "tests": "run the tests, too"})
def check(_context: Any, fix: bool = False, tests: bool = True) -> None:
    """Run ruff, mypy, import-linter and the tests, all of them, and say which failed."""
    checks = CHECKS | FIXES if fix else CHECKS
    failed = [name for name, argv in checks.items() if _run(name, [_program(argv[0]), *argv[1:]]) != 0]
    if tests and _run_tests([]) != 0:
        failed.append("tests")
    if failed:
        raise Exit(f"failed: {', '.join(failed)}", code=1)


@task(help={})
def test(_context: Any) -> None:
    """Set up what the tests need and run them; what stands after -- goes to pytest: test -- -k health."""
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if code := _run_tests(arguments):
        raise Exit(code=code)


@task(
    help={
        "rounds": "how many",
        "seed": "of the first round; each further one has the next (default: a random one)",
        "faults": "in every round these, and habits of the script, e.g. link-down,quiet (default: one or two of all)",
        "verbose": "show what happened when, also of rounds in which all was well",
        "json": JSON_HELP,
    }
)
def chaos(
    _context: Any,
    rounds: str = "20",
    seed: str | None = None,
    faults: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Break what can break under running jobs on the lab, the same for the same seed, and check what must hold."""
    import secrets

    from tests.chaos import suite

    from .. import display

    first = whole(seed, "--seed")
    _set_up()
    summary = suite.run(
        whole(rounds, "--rounds", 1) or 1,
        secrets.randbelow(1_000_000) if first is None else first,
        suite.kinds_in(faults),
        tell=display.note,
        verbose=verbose,
    )
    if json:
        display.show_json(summary)
    else:
        display.note(suite.sum_up(summary))
    if summary.violations:
        raise Exit(f"{summary.violations} violations", code=1)


def _run_tests(arguments: list[str]) -> int:
    pytest = _program("pytest")
    _set_up()
    # Much of the time is waiting, for hosts and their patience: two workers, each with a lab of its own.
    shared = ["-n", str(WORKERS), "--dist", "loadgroup"]
    return _run("pytest", [pytest, "-p", "tests.left_out", *shared, *arguments])


def _set_up() -> None:
    """What the lab needs, and the launches on it."""
    from ..cluster_file import load_cluster
    from ..sync import ensure_local

    _install_packages()
    ensure_local(load_cluster("local", cwd=CHECKOUT))


def _install_packages() -> None:
    """As root on Debian and its kin, the packages that the lab lacks; else the tests say what they left out."""
    from tests.lab.tools import missing_packages

    from .. import display

    packages = missing_packages()
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    display.note(f"installing for the lab: {' '.join(packages)}")
    for step in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        # An update that reached only some archives is often enough; the lab itself says what it still lacks.
        subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *step],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )


def _program(name: str) -> str:
    """A program of the Python that runs this; raises ToolMissing."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ToolMissing(f"{path} is missing; `bin/ugro check` and `bin/ugro test` install it")
    return str(path)


def _run(name: str, argv: list[str]) -> int:
    """The exit code of a program that runs in the checkout and shows its own output."""
    from .. import display

    display.note(f"== {name}")
    # Ctrl-C is for the program to answer: pytest still takes its lab down.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(argv, cwd=CHECKOUT, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
