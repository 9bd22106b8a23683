"""A pytest plugin for the tests of one group: it draws a part of them and counts outcomes.

`--drawn COMMIT:COUNT` runs COUNT of the tests, drawn by the commit. `--tally FILE` writes the
counts as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dev.groups import draw
from tests.left_out import left_out

# {count here: outcomes of pytest's own closing line}
OUTCOMES = {"passed": ("passed", "xpassed"), "failed": ("failed", "error")}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    ours = parser.getgroup("groups of tests")
    ours.addoption(
        "--drawn",
        metavar="COMMIT:COUNT",
        help="run so many of the tests, drawn by the commit",
    )
    ours.addoption(
        "--tally",
        metavar="FILE",
        help="write how many passed, failed and were left out, and why",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Deselect all tests that were not drawn; each worker draws the same ones."""
    wanted = config.getoption("--drawn")
    if not wanted:
        return
    commit, _, count = wanted.partition(":")
    drawn = draw([item.nodeid for item in items], commit, int(count))
    others = [item for item in items if item.nodeid not in drawn]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item.nodeid in drawn]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write the counts of all workers; a single worker writes none."""
    path = config.getoption("--tally")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not path or not reporter or hasattr(config, "workerinput"):
        return
    counts = dict.fromkeys(OUTCOMES, 0)
    for name, outcomes in OUTCOMES.items():
        for outcome in outcomes:
            counts[name] += len(reporter.stats.get(outcome, []))
    Path(path).write_text(json.dumps({**counts, "left_out": left_out(config)}))
