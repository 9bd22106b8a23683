"""What is seen of a job while it goes, and how following it ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import Terminal, make_cluster, make_record, make_scripts
from ugro_tasks.cli.interrupts import Interrupts
from ugro_tasks.cli.show import follow, job_view
from ugro_tasks.cli.show.follow import Follower
from ugro_tasks.cli.show.job_view import JobView
from ugro_tasks.errors import JobEnded, NotGathered
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Cause, Event, JobState, RankState
from ugro_tasks.jobs.watch import Line, Progress

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
RUNNING = JobState(
    phase=Phase.RUNNING,
    started_at=100.0,
    ranks=(RankState(rank=0, node="gpu0"), RankState(rank=2, node="gpu2")),
)
SUCCEEDED = msgspec.structs.replace(
    RUNNING, phase=Phase.SUCCEEDED, ended_at=225.0, gathered_at=225.0
)
CAUSE = Cause(message="rank 1 on gpu1: exit code 7", last_lines=("the end",))
FAILED = msgspec.structs.replace(
    RUNNING, phase=Phase.FAILED, ended_at=225.0, cause=CAUSE
)


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


@pytest.fixture
def job(experiments: Experiments, tmp_path: Path) -> Experiment:
    return experiments.create(
        make_record(make_cluster(tmp_path)), make_scripts(tmp_path / "scripts")
    )


def view_of(job: Experiment, **changes: Any) -> JobView:
    return JobView(
        job, **{"offsets": None, "verbose": False, "as_json": False, **changes}
    )


def test_lines_come_behind_the_node_of_their_rank(
    job: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    view = view_of(job)
    for item in (
        RUNNING,
        Line(0, "a"),
        Line(2, "[red]b[/]\x1b[2J"),
        Line(1, "left behind"),
        None,
    ):
        view.show(item)
    assert capsys.readouterr().out == "gpu0 │ a\ngpu2 │ [red]b[/]\n1    │ left behind\n"


def test_lines_wait_for_each_other_but_not_when_they_are_many(
    job: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_view, "LINES_AT_ONCE", 3)
    view = view_of(job)
    view.show(Line(0, "a"))
    view.show(Line(0, "b"))
    assert capsys.readouterr().out == ""
    view.show(Line(0, "c"))
    assert capsys.readouterr().out.count("\n") == 3
    view.show_lines()
    assert capsys.readouterr().out == ""


def test_an_event_comes_after_the_lines_before_it(
    job: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    view = view_of(job)
    view.show(Line(0, "a"))
    view.show(Event(time=1.0, node="gpu1", message="[bold]is away"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("│ a")
    assert second.endswith(" gpu1: [bold]is away")


def test_an_event_of_before_is_not_told_again(
    job: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    view_of(job, offsets={}).show(Event(time=1.0, message="long ago"))
    view_of(job, as_json=True).show(Event(time=1.0, message="for machines"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "in 2:05; see"),
        ({"step": 5}, "in 2:05  step 5; see"),
        (
            {"step": 5, "total_steps": 20, "loss": 1.25},
            "in 2:05  step 5/20 (25 %)  loss 1.2500; see",
        ),
        ({"step": "\x1b[2Jx", "total_steps": 0, "loss": "y"}, "in 2:05  step x; see"),
    ],
)
def test_a_success_is_told_with_how_far_it_came(
    job: Experiment,
    capsys: pytest.CaptureFixture[str],
    metrics: dict[str, object],
    words: str,
) -> None:
    view = view_of(job)
    view.show(Progress(metrics))
    view.show(SUCCEEDED)
    view.show_success()
    out = capsys.readouterr().out
    assert out.startswith(f"{job.job_id} succeeded ")
    assert words in out


def test_on_a_terminal_the_last_line_says_how_far_it_is(
    job: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with view_of(job) as view:
        for item in (
            SUCCEEDED,
            Progress({"step": 7, "loss": 0.5}),
            Line(0, "[red]:boom:[/]"),
            None,
        ):
            view.show(item)
    out = ESCAPE.sub("", terminal.getvalue())
    assert "gpu0 │ [red]:boom:[/]\n" in out
    assert f"{job.name} succeeded 2:05  step 7  loss 0.5000" in out


# ---- how it ends ----


def follower(
    experiments: Experiments,
    job: Experiment,
    items: Iterable[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Follower:
    monkeypatch.setattr(follow, "watch", lambda *_args, **_options: iter(items))
    return Follower(experiments, job, Interrupts())


def test_a_job_that_failed_ends_with_its_cause_in_words(
    experiments: Experiments, job: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobEnded) as raised:
        follower(experiments, job, [RUNNING, FAILED], monkeypatch).until_ended(
            interrupt_stops=True
        )
    assert raised.value.text == (
        f"{job.job_id} failed: rank 1 on gpu1: exit code 7\n    the end\nsee: inv logs {job.name}"
    )


def test_a_job_that_succeeded_ends_with_a_word(
    experiments: Experiments,
    job: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = [RUNNING, Line(0, "last words"), SUCCEEDED]
    follower(experiments, job, items, monkeypatch).until_ended(interrupt_stops=True)
    out = capsys.readouterr().out
    assert out.index("last words") < out.index("succeeded in 2:05")


def test_a_success_that_is_not_home_ends_with_a_code_of_its_own(
    experiments: Experiments, job: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = msgspec.structs.replace(SUCCEEDED, gathered_at=None)
    shown = follower(experiments, job, [RUNNING, away], monkeypatch)
    with pytest.raises(NotGathered) as raised:
        shown.until_ended(interrupt_stops=True)
    assert raised.value.exit_code == 14
    assert raised.value.text.endswith(f"get it: inv gather {job.job_id}")


def test_whoever_detaches_returns_when_all_ranks_run(
    experiments: Experiments,
    job: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    follower(experiments, job, [RUNNING, FAILED], monkeypatch).until_running()
    assert f"inv attach {job.name}" in capsys.readouterr().err


def test_ctrl_c_only_leaves_where_it_stops_nothing(
    experiments: Experiments,
    job: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = follower(experiments, job, [RUNNING, FAILED], monkeypatch)
    monkeypatch.setattr(shown.interrupts, "take", lambda: True)
    shown.until_ended(interrupt_stops=False)
    assert "goes on" in capsys.readouterr().err
