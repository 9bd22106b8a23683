"""What holds of a gang in every state, whatever happens in whatever order: many thousand drawn schedules.

    bin/ugro test --group schedules

prints the pairs of a stage and an event that were met.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.unit.backends.ssh.schedules import (
    AT_ONCE,
    FOR_A_WHILE,
    LATEST_SECONDS,
    OF_THE_AGENT,
    Happening,
    Schedule,
    check,
)
from ugro_tasks.backends.ssh.gang import Stage

PARTS = 8
SCHEDULES = 20_000
MET: Counter[tuple[str, str]] = Counter()
VERDICTS: Counter[str] = Counter()

seconds = st.integers(0, 2 * LATEST_SECONDS).map(lambda half: half / 2)
happenings = st.one_of(
    st.builds(
        Happening,
        kind=st.sampled_from(FOR_A_WHILE),
        at=seconds,
        node=st.integers(0, 2),
        seconds=seconds,
    ),
    st.builds(
        Happening, kind=st.sampled_from(AT_ONCE), at=seconds, node=st.integers(0, 2)
    ),
    st.builds(Happening, kind=st.sampled_from(OF_THE_AGENT), at=seconds),
)
few = st.lists(st.integers(0, 2), max_size=1).map(tuple)
schedules = st.builds(
    Schedule,
    happenings=st.lists(happenings, max_size=8).map(tuple),
    ranks=st.integers(1, 3),
    local=st.integers(0, 1),
    restarts=st.booleans(),
    cannot_send=st.one_of(st.just(()), st.just(()), few),
    stubborn=st.one_of(st.just(()), st.just(()), few),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_in_whatever_order_what_is_said_is_so(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=SCHEDULES // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules)
    def play(schedule: Schedule) -> None:
        VERDICTS[check(schedule, MET)] += 1

    play()


def test_all_that_can_be_met_was_met(capsys: pytest.CaptureFixture[str]) -> None:
    """It comes last, and prints what the schedules came to."""
    if sum(VERDICTS.values()) < SCHEDULES:
        pytest.skip("for all parts in one process")
    with capsys.disabled():
        print("\n" + table())
    met = {stage for stage, _ in MET}
    assert met == {stage.name for stage in Stage} - {"OVER"}
    assert set(VERDICTS) == {
        "succeeded",
        "failed",
        "stopped",
        "stopped: asked",
        "stopped: reset",
    }


def table() -> str:
    """Give how often each event was met in each stage, and how the jobs ended."""
    events = sorted({event for _, event in MET})
    stages = [stage.name for stage in Stage if stage.name != "OVER"]
    lines = [f"{'':13}" + "".join(f"{stage:>13}" for stage in stages)]
    for event in events:
        counts = (f"{MET[stage, event]:13,}" for stage in stages)
        lines.append(f"{event:13}" + "".join(counts))
    ends = ", ".join(
        f"{count:,} {verdict}" for verdict, count in VERDICTS.most_common()
    )
    return "\n".join([*lines, f"ends: {ends}"])
