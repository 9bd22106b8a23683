"""A seed is a round, and the document tells of every fault."""

from pathlib import Path

import pytest

from tests.chaos.faults import ACTS, HABITS, KINDS
from tests.chaos.plans import draw
from tests.chaos.suite import kinds_in
from ugro_tasks.errors import UsageError

DOCUMENT = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text("utf-8")


def test_the_same_seed_is_the_same_round() -> None:
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]


def test_two_hundred_rounds_have_every_fault_and_every_habit() -> None:
    plans = [draw(seed) for seed in range(200)]
    drawn = {fault.kind for plan in plans for fault in plan.faults}
    assert drawn >= set(KINDS) - {"clock-stepped"}  # which needs a C compiler
    assert {habit for plan in plans for habit in plan.habits} == set(HABITS)
    assert 60 < sum(plan.restarts for plan in plans) < 140
    acts = {plan.act for plan in plans if "hostile-rank" in plan.habits}
    assert acts == set(ACTS)
    assert any(plan.shared_home and not plan.beside for plan in plans)


def test_the_jobs_of_a_round_have_nodes_of_their_own() -> None:
    divided = [plan for plan in map(draw, range(200)) if plan.beside]
    assert divided
    for plan in divided:
        nodes = [node for job in plan.jobs for node in job.nodes]
        assert nodes == [0, 1, 2]
        assert all(
            any(job.is_hit_by(fault) for job in plan.jobs) for fault in plan.faults
        )


@pytest.mark.parametrize("name", [*KINDS, *HABITS])
def test_a_fault_stands_in_the_document_with_its_promise(name: str) -> None:
    promised = (
        [KINDS[name].words, KINDS[name].promise] if name in KINDS else [HABITS[name][1]]
    )
    assert f"| `{name}` | {' | '.join(promised)} |" in DOCUMENT


def test_a_fault_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"'link-don'.*link-down"):
        kinds_in("link-don")
