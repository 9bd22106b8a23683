"""Status and logs, from a folder that others may have written into."""

import os
from pathlib import Path

import pytest

from tests.unit.factories import damage, make_cluster, make_record, make_scripts
from ugro_tasks.errors import RecordError, UsageError
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Event
from ugro_tasks.jobs.tail import LINE_BYTES, Tail, end_of_lines
from ugro_tasks.reports.logs import log_tails
from ugro_tasks.reports.status import all_jobs, one_job


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


@pytest.fixture
def job(experiments: Experiments, tmp_path: Path) -> Experiment:
    return experiments.create(
        make_record(make_cluster(tmp_path)), make_scripts(tmp_path / "scripts")
    )


# ---- status ----


def test_a_folder_without_jobs_has_no_lines(experiments: Experiments) -> None:
    assert all_jobs(experiments, None) == []


def test_a_job_has_a_line(experiments: Experiments, job: Experiment) -> None:
    [line] = all_jobs(experiments, None)
    assert line.state
    assert (line.job_id, line.state.phase, line.nodes) == (
        job.job_id,
        Phase.QUEUED,
        ("gpu0", "gpu1", "gpu2"),
    )


@pytest.mark.parametrize("name", ["config.json", "state.json"])
@pytest.mark.parametrize("junk", [None, b"", b"{", b"\xff", b'{"state": 7}', b"null"])
def test_a_damaged_job_is_a_line_with_the_reason(
    experiments: Experiments, job: Experiment, name: str, junk: bytes | None
) -> None:
    damage(job, name, junk)
    [line] = all_jobs(experiments, None)
    assert (line.job_id, line.state) == (job.job_id, None)
    assert name in (line.damaged or "")


def test_a_foreign_folder_does_not_hide_the_jobs(
    experiments: Experiments, job: Experiment
) -> None:
    (experiments.folder / "backup_20200101_000000").mkdir()
    (experiments.folder / "notes").mkdir()
    assert [(line.job_id, line.damaged is None) for line in all_jobs(experiments, None)] == [
        (job.job_id, True), ("backup_20200101_000000", False),
    ]  # fmt: skip


def test_only_the_newest_jobs_are_read_where_only_they_are_asked_for(
    experiments: Experiments, job: Experiment
) -> None:
    (experiments.folder / "old_20200101_000000").mkdir()
    assert [line.job_id for line in all_jobs(experiments, 1)] == [job.job_id]


def test_one_job_is_told_with_its_events(job: Experiment) -> None:
    job.add_event(Event(time=1.0, message="hello"))
    report = one_job(job, live=False)
    assert ([event.message for event in report.events], report.live) == (
        ["hello"],
        None,
    )


def test_a_job_without_a_plan_has_no_nodes_to_ask(job: Experiment) -> None:
    assert one_job(job, live=True).live == {}


def test_one_damaged_job_is_a_record_error(job: Experiment) -> None:
    damage(job, "config.json", b"{")
    with pytest.raises(RecordError):
        one_job(job, live=False)


# ---- logs ----


@pytest.mark.parametrize(
    ("log", "count", "lines"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\n", 50, ["a", "b"]),
        (b"a\nb\n", 0, []),
        (b"\n\n\n", 2, ["", ""]),
        (b"\xff\xfe\n", 1, ["��"]),
        (b"10%\r20%\n", 1, ["10%\r20%"]),
        (b"form\x0cfeed \x85 \xe2\x80\xa8 line\n", 1, ["form\x0cfeed � \u2028 line"]),
    ],
    ids=range(9),
)
def test_the_last_lines_of_a_rank(
    job: Experiment, log: bytes, count: int, lines: list[str]
) -> None:
    job.log(0).path.write_bytes(log)
    assert log_tails(job, 0, count) == {0: lines}


def test_the_end_of_a_huge_log_is_read_from_its_end(job: Experiment) -> None:
    with job.log(0).path.open("wb") as file:
        file.truncate(1 << 33)  # sparse: it takes no room
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    assert log_tails(job, 0, 2) == {0: ["last but one", "last"]}


@pytest.mark.parametrize(
    ("log", "end"),
    [
        (b"", 0),
        (b"half", 0),
        (b"one\n", 4),
        (b"one\ntwo\nhalf", 8),
        (b"x" * (LINE_BYTES + 1), LINE_BYTES + 1),
    ],
)
def test_who_follows_goes_on_where_the_last_lines_ended(
    job: Experiment, log: bytes, end: int
) -> None:
    file = job.log(0)
    file.append_stream(log)
    assert end_of_lines(file) == end
    file.append_stream(b" more\nlast\n")
    shown = log_tails(job, 0, 100, {0: end})[0] + Tail(file, end).read()
    assert "\n".join(shown) == file.read().decode().removesuffix("\n").replace(
        "x more", "x\n more"
    )


def test_all_ranks_are_told_in_their_order(job: Experiment) -> None:
    for rank in (10, 2, 0):
        job.log(rank).path.write_text(f"{rank}\n")
    assert list(log_tails(job, None, 5).items()) == [
        (0, ["0"]),
        (2, ["2"]),
        (10, ["10"]),
    ]


@pytest.mark.parametrize("rank", [-1, 3, 99])
def test_a_rank_that_the_job_does_not_have_is_refused(
    job: Experiment, rank: int
) -> None:
    with pytest.raises(UsageError, match=f"--rank {rank}: .* has the ranks 0 to 2"):
        log_tails(job, rank, 5)


@pytest.mark.parametrize(
    "name",
    ["training_rank0_old.log", "training_rankX.log", "training_rank.log", "notes.log"],
)
def test_a_foreign_file_among_the_logs_is_skipped(job: Experiment, name: str) -> None:
    job.log(0).path.write_text("mine\n")
    (job.folder / "logs" / name).write_text("foreign\n")
    assert log_tails(job, None, 5) == {0: ["mine"]}
