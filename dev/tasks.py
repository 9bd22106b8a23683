"""The developers' tasks check, test, chaos and simulate, added to the others by the root's tasks.py."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from invoke.exceptions import Exit

from ugro_tasks.cli.command_line import remainder
from ugro_tasks.cli.flags import JSON_HELP, listed, whole
from ugro_tasks.cli.task import task

CHECKS = {
    "ruff check": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports", "--no-logo"],
}
FIXES = {"ruff check": ["ruff", "check", "--fix"], "ruff format": ["ruff", "format"]}


@task(help={"fix": "fix what ruff can fix", "tests": "run the tests, too"})
def check(_context: Any, fix: bool = False, tests: bool = True) -> None:
    """Run ruff, mypy, import-linter and the tests, all of them, and say which failed."""
    from dev import running

    programs = running.Programs()
    failed = []
    commands = CHECKS | FIXES if fix else CHECKS
    for name, (program, *words) in commands.items():
        code = programs.run(name, [running.program(program), *words])
        if code != 0:
            failed.append(name)
    if tests and not _run_tests([], everything=False, part=None, arguments=[]):
        failed.append("tests")
    if failed:
        raise Exit(f"failed: {', '.join(failed)}", code=1)


@task(
    help={
        "all": "every group; of those that take too long, a part that the commit draws",
        "group": "these groups, whole: a,b; may be given more than once",
        "groups": "list the groups and what they need; run nothing",
        "part": "run the part of the slow groups that this commit draws (default with --all: the one checked out)",
    },
    iterable=["group"],
)
def test(
    _context: Any,
    group: str | list[str] | None = None,
    all: bool = False,  # noqa: A002
    groups: bool = False,
    part: str | None = None,
) -> None:
    """Set up what the tests need and run them; what stands after -- goes to pytest: test -- -k health."""
    if groups:
        from dev.report import show_groups

        return show_groups()
    if not _run_tests(listed(group), everything=all, part=part, arguments=remainder()):
        raise Exit(code=1)
    return None


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
    rounds: str | int = 20,
    seed: str | int | None = None,
    faults: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Break what can break under running jobs on the lab, the same for the same seed, and check what must hold."""
    import secrets

    from dev.groups import choose
    from dev.set_up import set_up
    from tests.chaos import suite
    from ugro_tasks.cli.show.format import note, show_json

    first = whole(seed, "--seed")
    if first is None:
        first = secrets.randbelow(1_000_000)
    set_up(choose(["chaos"], everything=False))
    summary = suite.run(
        whole(rounds, "--rounds", 1) or 1,
        first,
        suite.kinds_in(faults),
        tell=note,
        verbose=verbose,
    )
    if json:
        show_json(dataclasses.asdict(summary))
    else:
        note(suite.sum_up(summary))
    if summary.violations:
        raise Exit(f"{summary.violations} violations", code=1)


@task(
    help={
        "schedules": "how many",
        "seed": "of all that is drawn (default: a random one)",
        "on_files": "how many of them to play again with real files and threads",
    }
)
def simulate(
    _context: Any,
    schedules: str | int = 20_000,
    seed: str | int | None = None,
    on_files: str | int = 200,
) -> None:
    """Play jobs on simulated nodes through drawn schedules of faults, and check what must hold in every state."""
    import secrets

    from tests.simulation import suite
    from ugro_tasks.cli.show.format import note

    drawn = whole(seed, "--seed")
    if drawn is None:
        drawn = secrets.randbelow(1_000_000)
    summary = suite.run(
        whole(schedules, "--schedules", 1) or 1,
        drawn,
        whole(on_files, "--on-files") or 0,
    )
    note(suite.tables(summary))
    for failure in summary.failures:
        note(failure)
    if summary.failures:
        raise Exit(f"{len(summary.failures)} failures, seed {drawn}", code=1)


def _run_tests(
    names: list[str], *, everything: bool, part: str | None, arguments: list[str]
) -> bool:
    """Set up and run groups, or the tests named in the arguments; return whether all is well."""
    from dev import running
    from dev.groups import choose
    from dev.report import show_results
    from dev.set_up import set_up
    from ugro_tasks.errors import UsageError

    groups = choose(names, everything)
    by_path = running.names_tests(arguments)
    if by_path and (names or everything or part):
        raise UsageError(
            "what stands after -- names tests. Leave out --all, --group and --part, or those paths"
        )
    commit = None
    if part or everything:
        commit = running.commit_of(part or "HEAD")
    begun = time.monotonic()
    set_up(groups)
    set_up_seconds = time.monotonic() - begun
    if by_path:
        return show_results(running.run_named(arguments), [], set_up_seconds)
    results = running.run_groups(groups, arguments, commit)
    not_run = [group.name for group in groups[len(results) :]]
    return show_results(results, not_run, set_up_seconds)
