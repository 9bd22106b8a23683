"""The experiment folder: nothing half-made, nothing lost, and nothing found that was not meant."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import (
    asked_to_stop,
    damage,
    disk_full_beyond,
    make_cluster,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
    make_spec,
)
from ugro_tasks.errors import JobNotFound, RecordError, UsageError
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.record import JobRecord
from ugro_tasks.jobs.state import Cause, Event, JobState, RankState


@pytest.fixture
def record(tmp_path: Path) -> JobRecord:
    return make_record(make_cluster(tmp_path))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    return make_scripts(tmp_path / "scripts")


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


@pytest.fixture
def job(experiments: Experiments, record: JobRecord, scripts: Path) -> Experiment:
    return experiments.create(record, scripts)


def lay(experiments: Experiments, *jobs: str, phase: Phase = Phase.SUCCEEDED) -> None:
    """Folders of these jobs, in this state."""
    for job_id in jobs:
        (experiments.folder / job_id).mkdir(parents=True)
        Experiment(experiments.folder / job_id).save_state(JobState(phase=phase))


def files_in(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }


# ---- create ----


def test_a_new_job_is_queued_under_its_name_and_the_time(job: Experiment) -> None:
    stamp = datetime.strptime(job.job_id.removeprefix("exp1_"), "%Y%m%d_%H%M%S")
    assert abs((datetime.now() - stamp).total_seconds()) < 60
    assert (job.name, job.state().phase, job.record().job_id) == (
        "exp1",
        Phase.QUEUED,
        job.job_id,
    )
    assert (job.folder / "logs").is_dir()


def test_two_jobs_of_a_name_in_one_second_have_two_ids(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    first, second = (experiments.create(record, scripts) for _ in range(2))
    assert first.job_id != second.job_id
    assert second.record().job_id == second.job_id


def test_processes_that_create_at_once_get_a_job_each(
    tmp_path: Path, scripts: Path, record: JobRecord
) -> None:
    code = (
        "import sys, msgspec; from pathlib import Path\n"
        "from ugro_tasks.jobs.experiments import Experiments; from ugro_tasks.jobs.record import JobRecord\n"
        "record = msgspec.json.decode(sys.stdin.buffer.read(), type=JobRecord)\n"
        "print(Experiments(Path(sys.argv[1])).create(record, Path(sys.argv[2])).job_id)"
    )
    import msgspec

    argv = [sys.executable, "-c", code, str(tmp_path / "experiments"), str(scripts)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ids = [
        process.communicate(msgspec.json.encode(record).decode())[0].strip()
        for process in processes
    ]
    assert sorted(path.name for path in (tmp_path / "experiments").iterdir()) == sorted(
        ids
    )
    assert len(set(ids)) == 3


@pytest.mark.parametrize("file_bytes", [0, 10, 100])
def test_a_full_disk_leaves_no_half_made_job(
    experiments: Experiments, record: JobRecord, scripts: Path, file_bytes: int
) -> None:
    with (
        disk_full_beyond(file_bytes),
        pytest.raises(RecordError, match="the job was not created"),
    ):
        experiments.create(record, scripts)
    assert list(experiments.folder.iterdir()) == []


@pytest.mark.parametrize(
    "place", ["/proc/experiments", "{}/file/experiments", "{}/file"]
)
def test_a_folder_that_cannot_be_made_says_where_to_set_another(
    tmp_path: Path, record: JobRecord, scripts: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"paths\.experiments"):
        Experiments(Path(place.format(tmp_path))).create(record, scripts)


def test_scripts_that_do_not_exist_leave_no_half_made_job(
    experiments: Experiments, record: JobRecord, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"paths\.scripts"):
        experiments.create(record, tmp_path / "nowhere")
    assert list(experiments.folder.iterdir()) == []


def test_what_is_being_made_is_no_job_yet(experiments: Experiments) -> None:
    (experiments.folder / ".making-1-2").mkdir(parents=True)
    assert list(experiments.all()) == []


def test_what_a_killed_launch_was_making_goes_with_the_next_one(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    host = os.uname().nodename
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (
        f".making-{host}-{gone.pid}-1",
        f".making-{host}-{os.getppid()}-1",
        f".making-other-{gone.pid}-1",
    ):
        (experiments.folder / name / "code").mkdir(parents=True)
    job = experiments.create(record, scripts)
    assert {path.name for path in experiments.folder.iterdir()} == {
        job.job_id, f".making-{host}-{os.getppid()}-1", f".making-other-{gone.pid}-1",
    }  # fmt: skip


def test_half_a_record_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    job = experiments.create(record, scripts)
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = (
        job.folder / f".state.json.{pid}.7" for pid in (gone.pid, os.getppid())
    )
    dead.touch()
    alive.touch()
    job.remove_half_written()
    assert (dead.exists(), alive.exists(), job.state().phase) == (
        False,
        True,
        Phase.QUEUED,
    )


# ---- the snapshot of the scripts ----


def test_the_snapshot_holds_the_scripts_and_nothing_that_is_made_of_them(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    for path in ("data/text.txt", "__pycache__/train.pyc", "lib/__pycache__/x.pyc", ".git/HEAD", "x.pyc",
                 ".mypy_cache/x", ".venv/bin/python", "lib/util.py", ".env"):  # fmt: skip
        (scripts / path).parent.mkdir(parents=True, exist_ok=True)
        (scripts / path).write_text(path)
    code = experiments.create(record, scripts).code.path
    assert files_in(code) == {"train.py", "data/text.txt", "lib/util.py", ".env"}


def test_the_hash_follows_names_and_contents(
    experiments: Experiments, record: JobRecord, tmp_path: Path
) -> None:
    variants = {
        "same": {},
        "again": {},
        "other": {"b": "1"},
        "renamed": {"c": "1"},
        "edited": {"b": "2"},
    }
    for number, (variant, files) in enumerate(variants.items()):
        make_scripts(tmp_path / variant, **files)
        experiments.create(
            make_record(make_cluster(tmp_path), name=f"{variant}{number}"),
            tmp_path / variant,
        )
    hashes = {job.name[:-1]: job.record().code.sha256 for job in experiments.all()}
    assert hashes["same"] == hashes["again"]
    assert len(set(hashes.values())) == 4


def test_scripts_too_large_to_travel_are_refused(
    experiments: Experiments,
    record: JobRecord,
    scripts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ugro_tasks.jobs.snapshot.CODE_LIMIT_BYTES", 3 << 20)
    with (scripts / "model.bin").open("wb") as file:
        file.truncate(4 << 20)
    with pytest.raises(UsageError, match=r"4 MiB would travel .*limit 3 MiB"):
        experiments.create(record, scripts)
    assert list(experiments.folder.iterdir()) == []


def _loop(scripts: Path) -> None:
    (scripts / "loop").symlink_to("loop")


def _loop_of_folders(scripts: Path) -> None:
    (scripts / "loop").symlink_to(scripts)


def _dangling(scripts: Path) -> None:
    (scripts / "gone.py").symlink_to("nowhere.py")


def _pipe(scripts: Path) -> None:
    os.mkfifo(scripts / "pipe")


def _not_utf8(scripts: Path) -> None:
    (scripts / os.fsdecode(b"caf\xe9.py")).touch()


@pytest.mark.parametrize(
    "oddity", [_loop, _loop_of_folders, _dangling, _pipe, _not_utf8]
)
@pytest.mark.timeout(20)
def test_an_oddity_among_the_scripts_does_no_harm(
    experiments: Experiments,
    record: JobRecord,
    scripts: Path,
    oddity: Callable[[Path], None],
) -> None:
    oddity(scripts)
    assert (experiments.create(record, scripts).code.path / "train.py").is_file()


def test_a_link_to_a_file_travels_as_the_file(
    experiments: Experiments, record: JobRecord, scripts: Path, tmp_path: Path
) -> None:
    (tmp_path / "shared.py").write_text("shared = 1\n")
    (scripts / "shared.py").symlink_to(tmp_path / "shared.py")
    copy = experiments.create(record, scripts).code.path / "shared.py"
    assert (copy.read_text(), copy.is_symlink()) == ("shared = 1\n", False)


def test_the_archive_is_what_was_launched_whatever_became_of_the_scripts(
    job: Experiment, scripts: Path
) -> None:
    import io
    import tarfile

    (scripts / "train.py").write_text("changed")
    with tarfile.open(fileobj=io.BytesIO(job.code_archive())) as archive:
        [member] = [one for one in archive.getmembers() if one.isfile()]
        content = archive.extractfile(member)
        assert content
        assert (member.name, content.read()) == ("train.py", b"print('hello')\n")


# ---- names ----


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("exp1", "exp1_20260120_120000"),
        ("exp1_b", "exp1_b_20260121_120000"),
        ("exp1_20260119_120000", "exp1_20260119_120000"),
        ("EXP1", None),
        ("exp", None),
        ("exp1_", None),
        ("exp1_20260120", None),
        ("*", None),
        ("", None),
        (".", None),
        ("../experiments/exp1_20260120_120000", None),
    ],
)
def test_a_name_is_found_exactly_or_not_at_all(
    experiments: Experiments, name: str, found: str | None
) -> None:
    lay(
        experiments,
        "exp1_20260119_120000",
        "exp1_20260120_120000",
        "exp1_b_20260121_120000",
    )
    try:
        assert experiments.find(name).job_id == found
    except JobNotFound:
        assert found is None


def test_a_whole_id_is_that_job_even_where_another_is_called_like_it(
    experiments: Experiments,
) -> None:
    lay(experiments, "exp1_20260120_120000", "exp1_20260120_120000_20260121_120000")
    assert experiments.find("exp1_20260120_120000").job_id == "exp1_20260120_120000"


def test_a_name_that_looks_like_an_id_is_found(experiments: Experiments) -> None:
    lay(experiments, "exp1_20260120_120000_20260121_120000")
    assert (
        experiments.find("exp1_20260120_120000").job_id
        == "exp1_20260120_120000_20260121_120000"
    )


def test_a_refused_job_is_passed_over_for_one_that_ran(
    experiments: Experiments,
) -> None:
    lay(experiments, "exp1_20260120_120000")
    lay(experiments, "exp1_20260121_120000", phase=Phase.REFUSED)
    assert experiments.find("exp1").job_id == "exp1_20260120_120000"


def test_where_all_were_refused_the_newest_is_found(experiments: Experiments) -> None:
    lay(
        experiments, "exp1_20260120_120000", "exp1_20260121_120000", phase=Phase.REFUSED
    )
    assert experiments.find("exp1").job_id == "exp1_20260121_120000"


def test_a_refused_job_is_found_by_its_id(experiments: Experiments) -> None:
    lay(experiments, "exp1_20260120_120000")
    lay(experiments, "exp1_20260121_120000", phase=Phase.REFUSED)
    assert experiments.find("exp1_20260121_120000").state().phase is Phase.REFUSED


def test_an_unknown_name_is_answered_with_the_nearest(experiments: Experiments) -> None:
    lay(
        experiments,
        "baseline_20260120_120000",
        "exp1_20260120_120000",
        "exp1_20260120_120001",
    )
    with pytest.raises(JobNotFound) as error:
        experiments.find("exp2")
    assert error.value.text.endswith("did you mean exp1?")


def test_in_an_empty_folder_the_answer_is_how_to_begin(
    experiments: Experiments,
) -> None:
    with pytest.raises(JobNotFound, match="there is none yet: inv launch"):
        experiments.find("exp1")


def test_jobs_come_newest_first_whatever_their_names(experiments: Experiments) -> None:
    lay(experiments, "b_20260120_120000", "a_20260121_120000", "c_20260119_120000")
    assert [job.name for job in experiments.all()] == ["a", "b", "c"]


def test_what_is_no_job_is_no_job(experiments: Experiments) -> None:
    lay(experiments, "exp1_20260120_120000")
    for name in (
        "notes",
        "exp1",
        "exp1_2026",
        "exp1-20260120-120000",
        ".git",
        "exp1_20260120_120000.bak",
    ):
        (experiments.folder / name).mkdir()
    (experiments.folder / "file_20260120_120000").touch()
    (experiments.folder / "gone_20260120_120000").symlink_to("nowhere")
    assert [job.job_id for job in experiments.all()] == ["exp1_20260120_120000"]


# ---- unfinished ----


def test_the_unfinished_jobs_come_oldest_first(experiments: Experiments) -> None:
    lay(experiments, "b_20260120_120000", "a_20260121_120000", phase=Phase.QUEUED)
    lay(experiments, "c_20260119_120000", phase=Phase.RUNNING)
    lay(experiments, "d_20260118_120000", phase=Phase.FAILED)
    assert [job.name for job in experiments.unfinished()] == ["c", "b", "a"]


@pytest.mark.parametrize("phase", list(Phase))
def test_a_job_is_unfinished_until_nothing_more_happens_to_it(
    experiments: Experiments, phase: Phase
) -> None:
    lay(experiments, "exp1_20260120_120000", phase=phase)
    assert bool(experiments.unfinished()) is not phase.finished


def test_a_job_in_the_history_has_ended(
    experiments: Experiments, job: Experiment, record: JobRecord
) -> None:
    experiments.add_to_history(
        job, record, JobState(phase=Phase.FAILED, cause=Cause(message='a "quote"'))
    )
    assert experiments.unfinished() == []


def test_a_job_whose_agent_was_killed_at_its_end_comes_into_the_history(
    experiments: Experiments, job: Experiment
) -> None:
    lay(experiments, "old_20250120_120000")
    old = Experiment(experiments.folder / "old_20250120_120000")
    old.save_record(job.record())
    for _ in range(2):
        experiments.complete_history()
    lines = (experiments.folder / "job_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["job_id"] for line in lines] == ["old_20250120_120000"]


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe\0", b"[]\n", b'{"job_id":', b"{}\n", b"\n\n", b'{"job_id":7}\n']
)
def test_junk_in_the_history_ends_no_job(
    experiments: Experiments, job: Experiment, junk: bytes
) -> None:
    (experiments.folder / "job_history.jsonl").write_bytes(junk)
    assert [one.job_id for one in experiments.unfinished()] == [job.job_id]


def test_a_history_torn_at_any_byte_ends_no_other_job(
    experiments: Experiments, job: Experiment, record: JobRecord
) -> None:
    lay(experiments, "old_20250120_120000")
    experiments.add_to_history(
        Experiment(experiments.folder / "old_20250120_120000"), record, job.state()
    )
    whole = (experiments.folder / "job_history.jsonl").read_bytes()
    for length in range(len(whole)):
        (experiments.folder / "job_history.jsonl").write_bytes(whole[:length])
        assert [one.job_id for one in experiments.unfinished()] == [job.job_id]


# ---- damage ----


@pytest.fixture
def full(job: Experiment, record: JobRecord) -> Experiment:
    """A job with every record that it can have."""
    plans = (make_node_plan(0), make_node_plan(1))
    job.save_record(
        make_record(
            make_cluster(job.folder), job_id=job.job_id, plan=make_plan_of(plans)
        )
    )
    ranks = (
        RankState(rank=0, node="gpu0"),
        RankState(rank=1, node="gpu1", lost="x", left_pids=(7,)),
    )
    job.save_state(
        JobState(
            phase=Phase.FAILED,
            started_at=1.0,
            ranks=ranks,
            cause=Cause(message="é", last_lines=("x",)),
        )
    )
    job.add_event(Event(time=1.0, message="rank 0 runs", node="gpu0"))
    job.add_event(Event(time=2.0, message="rank 0 ended"))
    return job


READERS: dict[str, Callable[[Experiment], Any]] = {
    "config.json": Experiment.record,
    "state.json": Experiment.state,
}
JUNK = [
    b"", b"\0", b"\xff\xfe", b"null", b"[]", b"7", b'"x"', b"{", b"{}", b'{"state": 7}', b"[" * 100_000,
    b'{"cluster": ' + b"[" * 100_000, b'{"state": "queued", "ranks": [' + b"[" * 100_000,
    b'{"state": "queued", "submitted_at": NaN}', b'{"state": "queued", "exit_code": 1e400}',
    b'{"state": "queued", "cause": {"message": "\xff"}}',
]  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_record_torn_at_any_byte_is_a_record_error(
    full: Experiment, name: str
) -> None:
    whole = (full.folder / name).read_bytes().rstrip()
    for length in range(len(whole)):
        damage(full, name, whole[:length])
        try:
            READERS[name](full)
        except RecordError:
            continue
        pytest.fail(f"taken for whole after {length} bytes")


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("name", READERS)
def test_junk_in_a_record_is_a_record_error(
    full: Experiment, name: str, junk: bytes
) -> None:
    damage(full, name, junk)
    with pytest.raises(RecordError, match=name):
        READERS[name](full)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", ["missing", "a folder", "a loop"])
def test_a_record_that_is_no_file_is_a_record_error(
    full: Experiment, name: str, what: str
) -> None:
    path = full.folder / name
    damage(full, name, None)
    if what == "a folder":
        path.mkdir()
    elif what == "a loop":
        path.symlink_to(path)
    with pytest.raises(RecordError, match=name):
        READERS[name](full)


def test_events_torn_at_any_byte_are_the_whole_ones_before(full: Experiment) -> None:
    path = full.folder / "events.jsonl"
    whole, events = path.read_bytes(), full.events()[0]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        came, offset = full.events()
        assert came == events[: whole[:length].count(b"\n")]
        assert offset == sum(
            len(line) for line in whole.splitlines(keepends=True)[: len(came)]
        )


@pytest.mark.parametrize("junk", [junk + b"\n" for junk in JUNK], ids=range(len(JUNK)))
def test_junk_among_the_events_is_skipped(full: Experiment, junk: bytes) -> None:
    path = full.folder / "events.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + junk + second)
    assert [event.message for event in full.events()[0]] == [
        "rank 0 runs",
        "rank 0 ended",
    ]


def test_events_come_from_where_the_reader_was(full: Experiment) -> None:
    _, offset = full.events()
    full.add_event(Event(time=3.0, message="more"))
    assert [event.message for event in full.events(offset)[0]] == ["more"]


def test_a_damaged_job_is_not_unfinished_and_no_harm_to_others(
    experiments: Experiments,
) -> None:
    lay(experiments, "a_20260120_120000", "b_20260121_120000", phase=Phase.QUEUED)
    damage(Experiment(experiments.folder / "b_20260121_120000"), "state.json", b"{")
    assert [job.name for job in experiments.unfinished()] == ["a"]
    assert experiments.find("b").job_id == "b_20260121_120000"


# ---- files ----


def test_what_ugro_writes_is_readable_by_its_owner_only(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    umask = os.umask(0)
    try:
        job = experiments.create(record, scripts)
        job.add_event(Event(time=1.0, message="x"))
        job.ask_to_stop()
        experiments.add_to_history(job, record, job.state())
        experiments.save_cluster_state({})
        lock = experiments.take_agent_lock()
    finally:
        os.umask(umask)
    assert lock
    lock.close()
    written = {path for path in files_in(experiments.folder) if "/code/" not in path}
    open_to_others = {
        path for path in written if (experiments.folder / path).stat().st_mode & 0o077
    }
    assert len(written) == 9
    assert open_to_others == set()


def test_a_state_that_cannot_be_written_leaves_the_old_one(job: Experiment) -> None:
    with disk_full_beyond(5), pytest.raises(OSError):
        job.save_state(JobState(phase=Phase.RUNNING))
    assert job.state().phase is Phase.QUEUED


def test_a_line_that_does_not_fit_is_an_error_and_no_half_line(job: Experiment) -> None:
    job.add_event(Event(time=1.0, message="first"))
    size = (job.folder / "events.jsonl").stat().st_size
    with disk_full_beyond(size + 10), pytest.raises(OSError):
        job.add_event(Event(time=2.0, message="second"))
    job.add_event(Event(time=3.0, message="third"))
    assert [event.message for event in job.events()[0]] == ["first", "third"]


def test_asking_for_a_stop_twice_is_asking_once(job: Experiment) -> None:
    assert not asked_to_stop(job)
    job.ask_to_stop()
    job.ask_to_stop()
    assert asked_to_stop(job)


def test_logs_come_in_the_order_of_the_ranks(job: Experiment) -> None:
    for rank in (10, 2, 0):
        job.log(rank).path.touch()
    assert list(job.logs().values()) == [job.log(0), job.log(2), job.log(10)]


# ---- the agent's lock ----


def test_one_agent_has_the_lock(experiments: Experiments) -> None:
    lock = experiments.take_agent_lock()
    assert lock
    with lock:
        lock.write(b"4711")
        assert experiments.take_agent_lock() is None
        assert experiments.agent_pid() == 4711
    assert experiments.agent_pid() is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_agent_but_a_fault(
    experiments: Experiments, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    experiments.prepare_for_agent()

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for asks in (experiments.agent_pid, experiments.take_agent_lock, experiments.prepare_for_agent):  # fmt: skip
        with pytest.raises(RecordError, match="its file system has no locks"):
            asks()


def test_the_lock_is_free_when_its_agent_was_killed(experiments: Experiments) -> None:
    code = (
        "import sys; from pathlib import Path; from ugro_tasks.jobs.experiments import Experiments\n"
        "lock = Experiments(Path(sys.argv[1])).take_agent_lock()\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(experiments.folder)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        assert experiments.take_agent_lock() is None
        process.send_signal(signal.SIGKILL)
    lock = experiments.take_agent_lock()
    assert lock
    lock.close()


def test_an_agent_that_has_not_yet_said_its_pid_is_an_agent(
    experiments: Experiments,
) -> None:
    lock = experiments.take_agent_lock()
    assert lock
    with lock:
        assert experiments.agent_pid() is not None


def test_the_history_says_what_ended_and_how(
    experiments: Experiments, job: Experiment, record: JobRecord
) -> None:
    state = JobState(
        phase=Phase.FAILED, started_at=10.0, ended_at=12.0, cause=Cause(message="why")
    )
    experiments.add_to_history(job, record, state)
    [line] = (experiments.folder / "job_history.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "job_id": job.job_id, "format": 2, "kind": "training", "job_name": "exp1", "state": "failed",
        "nodes": ["gpu0", "gpu1", "gpu2"],
        "started_at": record.started_at, "seconds": 2.0, "cause": "why",
    }  # fmt: skip


# ---- which is the newest ----


def test_ids_have_their_time_in_utc(
    experiments: Experiments,
    record: JobRecord,
    scripts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    for zone in ("Asia/Tokyo", "America/New_York", "Pacific/Kiritimati"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        made.append(experiments.create(record, scripts))
    monkeypatch.delenv("TZ")
    time.tzset()
    assert experiments.find("exp1").job_id == made[-1].job_id
    assert [job.job_id for job in experiments.all()] == [
        job.job_id for job in reversed(made)
    ]
    at = made[0].state().submitted_at
    assert made[0].job_id == f"exp1_{time.strftime('%Y%m%d_%H%M%S', time.gmtime(at))}"


def test_the_newest_is_the_one_submitted_last_where_ids_are_local_times(
    experiments: Experiments, record: JobRecord, scripts: Path
) -> None:
    """Before format 2: launched in Tokyo first, then in New York."""
    newest = experiments.create(record, scripts)
    lay(experiments, "exp1_20260120_230000", "exp1_20260120_100000")
    earlier = Experiment(experiments.folder / "exp1_20260120_230000")
    later = Experiment(experiments.folder / "exp1_20260120_100000")
    shutil.rmtree(newest.folder)
    for job, at in ((earlier, 1000.0), (later, 2000.0)):
        job.save_state(msgspec.structs.replace(job.state(), submitted_at=at))
    assert experiments.find("exp1").job_id == later.job_id


def test_a_clock_that_was_set_back_makes_no_older_job(
    experiments: Experiments,
    record: JobRecord,
    scripts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = experiments.create(record, scripts)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400.0)
    second = experiments.create(record, scripts)
    assert second.state().submitted_at > first.state().submitted_at
    assert second.job_id > first.job_id
    assert experiments.find("exp1").job_id == second.job_id


@pytest.mark.parametrize("name", ["exp1.serve", "s1.7", "a.b.12"])
def test_names_of_servings_and_trials_are_reserved(name: str) -> None:
    with pytest.raises(UsageError, match="UGRO's own"):
        make_spec(name=name).checked()


@pytest.mark.parametrize("name", ["exp1.server", "v1.7b", "serve", "7", "a.7.b"])
def test_other_names_with_dots_are_free(name: str) -> None:
    assert make_spec(name=name).checked().name == name
