"""What a command that follows a job to its end makes of that end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.cli.interrupts import Interrupts
from ugro_tasks.cli.show.follow import Follower
from ugro_tasks.errors import JobEnded, StopUnproven
from ugro_tasks.jobs import stop_request
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Cause, JobState, RankState


class Ending(Experiment):
    """A job that ends as soon as it is asked to stop."""

    end: JobState

    def ask_to_stop(self, *, give_up: bool = False) -> None:
        """Be asked, and end."""
        super().ask_to_stop(give_up=give_up)
        self.save_state(self.end)


def stopping(root: Path, end: JobState) -> Follower:
    experiments = Experiments(root / "experiments")
    created = experiments.create(
        make_record(make_cluster(root)), make_scripts(root / "scripts")
    )
    experiment = Ending(created.folder)
    experiment.end = end
    experiment.save_state(JobState(phase=Phase.RUNNING))
    return Follower(experiments, experiment, Interrupts(), quiet=True)


def test_a_proven_stop_is_what_was_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = JobState(phase=Phase.STOPPED, exit_code=130, cause=Cause(message="as asked"))
    stopping(tmp_path, end).stop()
    assert "stopped: as asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("phase", "code"),
    [(Phase.STOPPED, 9), (Phase.FAILED, 9), (Phase.FAILED, 7), (Phase.REFUSED, 6)],
)
def test_any_other_end_is_raised_with_its_exit_code(
    tmp_path: Path, phase: Phase, code: int
) -> None:
    end = JobState(
        phase=phase, exit_code=code, cause=Cause(message="gpu1: still there after KILL")
    )
    with pytest.raises(JobEnded, match="still there after KILL") as ended:
        stopping(tmp_path, end).stop()
    assert ended.value.exit_code == code


def test_a_stop_that_is_overdue_names_the_nodes_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_request, "PATIENCE_SECONDS", -1e9)
    ranks = (
        RankState(rank=0, node="gpu0", proven_gone=True),
        RankState(rank=1, node="gpu1"),
    )
    goes_on = JobState(phase=Phase.STOPPING, ranks=ranks)
    with pytest.raises(StopUnproven) as unproven:
        stopping(tmp_path, goes_on).stop()
    assert "no proof yet from gpu1; the agent goes on" in unproven.value.text
    assert "inv stop exp1 --give-up" in unproven.value.text


class Starting(Experiment):
    """A job whose state is another one at each look."""

    states: list[JobState]

    def state(self) -> JobState:
        """Return the next state; the last one for ever."""
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def test_lines_that_are_there_with_the_first_ranks_have_their_nodes_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a busy machine a look finds the ranks and their first lines together."""
    experiments = Experiments(tmp_path / "experiments")
    record = make_record(make_cluster(tmp_path))
    created = experiments.create(record, make_scripts(tmp_path / "scripts"))
    experiment = Starting(created.folder)
    ranks = (RankState(rank=0, node="gpu0"),)
    queued = JobState(phase=Phase.QUEUED)
    experiment.states = [
        queued,
        queued,
        JobState(phase=Phase.RUNNING, ranks=ranks),
        JobState(phase=Phase.SUCCEEDED, ranks=ranks, gathered_at=1.0),
    ]
    experiment.log(0).path.parent.mkdir(exist_ok=True)
    experiment.log(0).path.write_text("step 1\n")
    Follower(experiments, experiment, Interrupts()).until_ended(interrupt_stops=False)
    assert "gpu0 │ step 1\n" in capsys.readouterr().out
