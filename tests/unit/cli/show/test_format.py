"""What a user sees. Nothing that came from a node reaches the terminal raw."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.factories import make_cluster, make_node_plan, make_plan_of, make_record
from ugro_tasks.cli.show.clean import show_clean
from ugro_tasks.cli.show.health import show_health
from ugro_tasks.cli.show.launch import show_dry_run
from ugro_tasks.cli.show.logs import show_log_tails
from ugro_tasks.cli.show.reset import show_reset
from ugro_tasks.cli.show.results import show_results
from ugro_tasks.cli.show.status import show_job, show_jobs
from ugro_tasks.errors import NodeFault
from ugro_tasks.health.node_checks import Check
from ugro_tasks.health.report import ClusterHealth, NodeHealth
from ugro_tasks.hosts.answers import Process, StateAnswer
from ugro_tasks.hosts.nvidia import Gpu
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.gpu_use import CardUse
from ugro_tasks.jobs.metrics import Metrics, Point
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Cause, Event, JobState, RankState
from ugro_tasks.launch.dry_run import Rehearsal
from ugro_tasks.outputs.clean import Cleaning, Removal, Stay
from ugro_tasks.reports.results import CheckpointRow, NodeUse, Results
from ugro_tasks.reports.status import JobLine, JobReport, NoAnswer
from ugro_tasks.text import printable, printable_lines

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Clears the screen, sets the title, answers back, moves up, and comes as a C1 byte.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x1b[6n\x1b[1A\x9b31m\x08evil"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("tabs\tstay", "tabs\tstay"),
        ("é ü 漢 🏖️", "é ü 漢 🏖️"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3mtrue colour\x1b[m", "true colour"),
        ("\x1b[?25lno cursor\x1b[?25h", "no cursor"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07text", "text"),
        ("\x1b[2J\x1b[Htext", "text"),
        ("\x1bctext", "text"),
        ("\x9b31mtext", "31mtext"),
        ("back\b\b\bspace", "backspace"),
        ("bell\a nul\0 del\x7f", "bell nul del"),
        ("10%\r50%\r100%", "100%"),
        ("100%\r", "100%"),
        ("windows\r", "windows"),
        ("\r\r\r", ""),
        ("lone \x1b", "lone "),
        ("\x1b\x1b[31m[31mtwice", "[31mtwice"),
        ("\x1b(B\x1b[mas tput sgr0 says it", "as tput sgr0 says it"),
        ("", ""),
    ],
)
def test_a_line_as_it_may_be_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(
    st.text(alphabet=st.sampled_from("\x1b[]0;m\x07\\\x9b\r\n\tPa?\x90\x9c"))
    | st.text()
)
def test_no_control_character_is_ever_shown(text: str) -> None:
    assert not CONTROL.search(printable(text))
    assert not CONTROL.search(printable_lines(text))


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs"))))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_lines_are_redrawn_one_by_one() -> None:
    assert printable_lines("a\rb\nc\r\x1b[1md") == "b\nd"


# ---- hostile nodes ----


def hostile_health() -> ClusterHealth:
    checks = tuple(
        Check(
            name=name, ok=ok, value=f"{name} {HOSTILE}", fix=f"fix {HOSTILE}", note=ok
        )
        for name, ok in (("environment", True), ("disk", True), ("gpu", False))
    )
    card = Gpu(
        index=HOSTILE,
        name=HOSTILE,
        uuid=HOSTILE,
        driver_version=HOSTILE,
        memory_total=HOSTILE,
        memory_used=HOSTILE,
        utilization=HOSTILE,
        temperature=HOSTILE,
        power_draw=HOSTILE,
    )
    node = NodeHealth(
        node="gpu0",
        rank=0,
        address="10.0.0.1",
        reachable=True,
        checks=checks,
        held_by=HOSTILE,
        gpus=(card,),
    )
    away = Check(name="reachable", ok=False, value=HOSTILE, fix=HOSTILE)
    gone = NodeHealth(
        node="gpu1", rank=1, address="10.0.0.2", reachable=False, checks=(away,)
    )
    same = Check(name="same torch", ok=False, value=HOSTILE)
    return ClusterHealth(
        cluster="lab", probed_at=1.0, seconds=1.0, nodes=(node, gone), across=(same,)
    )


def hostile_state() -> JobState:
    cause = Cause(message=f"first\n{HOSTILE}", last_lines=(HOSTILE, "x\rlast"))
    ranks = (RankState(rank=0, node="gpu0", lost=HOSTILE, ended_at=1.0),)
    return JobState(
        phase=Phase.FAILED, started_at=1.0, ended_at=2.0, ranks=ranks, cause=cause
    )


def an_example_of_health(tmp_path: Path) -> None:
    show_health(hostile_health(), None, verbose=True, as_json=False)


def show_resets(tmp_path: Path) -> None:
    process = Process(pid=7, job=HOSTILE, token=HOSTILE, command=HOSTILE)
    show_reset(
        {"gpu0": [process], "gpu1": NodeFault("gpu1", HOSTILE, HOSTILE)}, as_json=False
    )


def an_example_of_jobs(tmp_path: Path) -> None:
    line = JobLine(
        job_id="exp1_20260120_120000", state=hostile_state(), nodes=("gpu0",)
    )
    damaged = JobLine(job_id=f"evil{HOSTILE}_20260120_120000", damaged=HOSTILE)
    show_jobs([line, damaged], as_json=False)


def an_example_of_job(tmp_path: Path) -> None:
    report = JobReport(
        job_id="exp1_20260120_120000",
        record=make_record(make_cluster(tmp_path)),
        state=hostile_state(),
        events=[Event(time=1.0, node="gpu0", message=HOSTILE)],
        live={
            "gpu0": NoAnswer(error=HOSTILE),
            "gpu1": StateAnswer(
                known=True, supervised=True, started=True, processes=[], paused=(7,)
            ),
        },
    )
    show_job(report, as_json=False)


def an_example_of_log_tails(tmp_path: Path) -> None:
    show_log_tails(Experiment(tmp_path), {0: [HOSTILE], 1: ["x\r" + HOSTILE]})


def an_example_of_results(tmp_path: Path) -> None:
    found = Results(
        job_id="exp1_20260120_120000",
        folder=str(tmp_path),
        record=make_record(make_cluster(tmp_path)),
        state=hostile_state(),
        metrics=Metrics(
            unreadable_lines=0,
            train=[Point(1.0, 2.0)],
            evaluation=[],
            last={HOSTILE: HOSTILE, "loss": 1.0},
            best={},
            first_nonfinite=None,
            tokens_per_second=1.0,
        ),
        nodes=[
            NodeUse(
                node=HOSTILE,
                rank=0,
                batch_size=1,
                tokens_per_second=1.0,
                cards=[hostile_card()],
            )
        ],
        checkpoints=[
            CheckpointRow(
                name=HOSTILE,
                path=HOSTILE,
                bytes=1,
                whole=False,
                missing=HOSTILE,
                step=1,
                epoch=None,
                ranks=[0],
                nodes=[HOSTILE],
            )
        ],
        logs={"logs/training_rank0.log": 1 << 40},
    )
    show_results(found, as_json=False)


def hostile_card() -> CardUse:
    numbers = dict.fromkeys(
        ("utilization_mean_percent", "utilization_max_percent", "memory_peak_mib", "memory_total_mib",
         "power_mean_watts", "power_max_watts", "temperature_max_celsius"), 1.0,
    )  # fmt: skip
    return CardUse(node=HOSTILE, index=0, name=HOSTILE, samples=1, **numbers)


def show_cleaning(tmp_path: Path) -> None:
    found = Cleaning(
        dry_run=False,
        removals=[Removal(where=HOSTILE, job_id=HOSTILE, path=HOSTILE, bytes=1)],
        stays=[Stay(job_id=HOSTILE, reason=HOSTILE)],
        unreached={"gpu1": HOSTILE},
        foreign={HOSTILE: 3},
    )
    show_clean(found, as_json=False)


def show_rehearsal(tmp_path: Path) -> None:
    plan = make_plan_of((make_node_plan(0),))
    found = Rehearsal(plan=plan, environments={HOSTILE: HOSTILE}, refusals=[HOSTILE])
    show_dry_run(found, as_json=False)


SHOWS = [
    an_example_of_health,
    show_resets,
    an_example_of_jobs,
    an_example_of_job,
    an_example_of_log_tails,
    an_example_of_results,
    show_rehearsal,
    show_cleaning,
]


@pytest.mark.parametrize("show", SHOWS)
def test_what_a_node_says_cannot_play_tricks_on_the_terminal(
    show: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path)
    captured = capsys.readouterr()
    assert "evil" in captured.out + captured.err
    assert CONTROL.findall(captured.out + captured.err) == []


@pytest.mark.parametrize(
    "words",
    [
        "[red]x[/red]",
        "[/]",
        "[/red]",
        "[bold",
        "\\[x]",
        "[link=http://x]y[/link]",
        "a\\\\\\",
        ":boom: {0} %s",
    ],
)
def test_what_looks_like_markup_is_shown_as_it_is(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = JobReport(
        job_id="exp1_20260120_120000",
        record=make_record(make_cluster(tmp_path)),
        state=JobState(
            phase=Phase.FAILED, cause=Cause(message=words, last_lines=(words,))
        ),
        events=[Event(time=1.0, message=words)],
    )
    show_job(report, as_json=False)
    assert capsys.readouterr().out.count(words) == 3


def test_a_long_line_is_not_cut_where_nobody_looks_at_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "x" * 5000
    line = JobLine(
        job_id="exp1_20260120_120000",
        state=JobState(phase=Phase.FAILED, cause=Cause(message=words)),
    )
    show_jobs([line], as_json=False)
    assert words in capsys.readouterr().out


def test_json_is_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    show_health(hostile_health(), None, verbose=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["fit"], told["nodes"][0]["held_by"]) == (False, HOSTILE)
