"""Tables of the groups of tests, and of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dev.groups import GROUPS, Group
from dev.running import NO_TESTS, Result
from ugro_tasks.cli.show.console import open_console
from ugro_tasks.cli.show.format import columns
from ugro_tasks.cli.show.values import duration
from ugro_tasks.text import printable_lines

RESULT_HEADS = ["group", "tests", "passed", "failed", "left out", "time", "of at most"]
GROUP_HEADS = ["group", "minutes", "run by", "needs besides", "tests"]


def show_groups(groups: Sequence[Group] = GROUPS) -> None:
    """Print a table of the groups."""
    columns(open_console(), [GROUP_HEADS, *map(_group_row, groups)])


def show_results(
    results: Sequence[Result], not_run: Sequence[str], set_up_seconds: float
) -> bool:
    """Print the results, and their sum as the last line; return whether all is well."""
    console = open_console()
    rows = [RESULT_HEADS, ["set-up", "", "", "", "", duration(set_up_seconds), ""]]
    rows += [_result_row(result) for result in results]
    rows += [[name, "not run", "", "", "", "", ""] for name in not_run]
    console.print("")
    columns(console, rows)
    left_out: Counter[str] = Counter()
    for result in results:
        left_out.update(result.left_out)
    for reason, count in left_out.items():
        tests = "test" if count == 1 else "tests"
        console.print(printable_lines(f"left out: {count} {tests}: {reason}"))
    failures = [result for result in results if not result.good]
    bad = [f"{result.name} ({_fault(result)})" for result in failures]
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    if all(result.code == NO_TESTS for result in results):
        bad.append("no test was selected")
    if bad:
        console.print(printable_lines(f"not well: {', '.join(bad)}"))
    # Alone on its line, for programs that count tests.
    console.print(f"{passed} passed, {failed} failed")
    return not bad and not not_run


def _fault(result: Result) -> str:
    if result.code not in {0, NO_TESTS}:
        return f"pytest's exit code {result.code}"
    names = ", ".join(result.left_behind)
    return f"left behind among the temporary files: {names}"


def _group_row(group: Group) -> list[str]:
    run_by = "test" if group.by_default else "test --all"
    if group.drawn:
        run_by += f", {group.drawn} of them; all by --group {group.name}"
    needs = list(group.programs.values())
    if group.requirements:
        needs.append(f"requirements/{group.requirements}")
    return [
        group.name,
        f"{group.minutes:g}",
        run_by,
        ", ".join(needs) or "-",
        group.about,
    ]


def _result_row(result: Result) -> list[str]:
    left_out = sum(result.left_out.values())
    counts = [str(result.passed), str(result.failed), str(left_out)]
    limit = ""
    if result.minutes:
        limit = f"{result.minutes:g} min"
        if result.seconds > result.minutes * 60:
            limit += ", exceeded"
    return [result.name, result.part, *counts, duration(result.seconds), limit]
