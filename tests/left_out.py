"""A pytest plugin: what a run left out is its last lines. In CI, where every tool can be had, it is a failure."""

import os
from collections import Counter

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if (
        os.environ.get("CI")
        and exitstatus == pytest.ExitCode.OK
        and left_out(session.config)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    # After pytest's own closing line.
    for reason, count in left_out(config).items():
        verdict = "; with CI set nothing may be" if os.environ.get("CI") else ""
        print(f"left out: {count} test{'s' * (count > 1)}: {reason}{verdict}")


def left_out(config: pytest.Config) -> Counter[str]:
    """How many tests were skipped, by reason, the most frequent first."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped
    )
    return Counter(dict(reasons.most_common()))
