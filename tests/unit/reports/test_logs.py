"""The last lines of the ranks, and where they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.ended import EndedJob
from ugro_tasks.errors import UsageError
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.reports.logs import log_ends, log_tails


@pytest.fixture
def job(tmp_path: Path) -> Experiment:
    """Rank 0 is in the midst of a line, and rank 2 has printed nothing yet."""
    made = EndedJob(tmp_path).home
    made.log(0).parent.make()
    made.log(0).path.write_text("a\nb\nhal")
    made.log(1).path.write_text("c\n")
    return made


def test_a_log_ends_where_its_whole_lines_do(job: Experiment) -> None:
    assert log_ends(job) == {0: 4, 1: 2}


def test_the_last_lines_are_those_before_the_end(job: Experiment) -> None:
    assert log_tails(job, None, 50) == {0: ["a", "b", "hal"], 1: ["c"]}
    assert log_tails(job, None, 50, log_ends(job)) == {0: ["a", "b"], 1: ["c"]}
    assert log_tails(job, 0, 1) == {0: ["hal"]}
    assert log_tails(job, 2, 50) == {}


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_that_is_none_is_refused(job: Experiment, rank: int) -> None:
    with pytest.raises(UsageError, match="has the ranks 0 to 2"):
        log_tails(job, rank, 50)
