"""What holds of a job in every state, whatever happens in whatever order: twenty thousand drawn schedules.

    bin/ugro simulate --schedules 20000 --seed 0

is the same, and prints what was met.
"""

from __future__ import annotations

import pytest

from tests.simulation import suite
from ugro_tasks.backends.ssh.gang import Stage

SCHEDULES = 20_000
ON_FILES = 200


@pytest.fixture(scope="module")
def summary() -> suite.Summary:
    """Return what came of the schedules."""
    return suite.run(SCHEDULES, seed=0, on_files=ON_FILES)


@pytest.mark.timeout(600)
def test_whatever_happens_in_whatever_order_what_is_said_is_so(
    summary: suite.Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print("\n" + suite.tables(summary))
    assert not summary.failures, summary.failures[0]
    assert summary.count >= SCHEDULES
    assert summary.count_on_files == ON_FILES


def test_every_state_and_every_end_was_met(summary: suite.Summary) -> None:
    stages = {stage for stage, _ in summary.met.events}
    assert stages == {stage.name for stage in Stage} - {"OVER"}
    phases = {phase for phase, _ in summary.met.happenings}
    assert phases >= {"queued", "preparing", "running", "stopping"}
    ends = {end.partition(" at ")[0] for end in summary.ends}
    assert ends == {
        "succeeded",
        "failed",
        "refused",
        "stopped: asked",
        "stopped: reset",
    }
