"""What goes and what stays when disks are cleaned."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.unit.ended import EndedJob, small_disk, store
from tests.unit.factories import damage, make_node
from ugro_tasks.cli.show.clean import show_clean
from ugro_tasks.errors import HostError, JobNotFound
from ugro_tasks.jobs.checkpoints import fetched_checkpoints
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.node import clean as node_cleaning
from ugro_tasks.node.processes import identity
from ugro_tasks.outputs import clean as cleaning
from ugro_tasks.outputs.clean import HOME, Cleaning, Wish

# Of other tests at the same time, processes with this token must not count.
NAME = f"exp1_20260120_120000.{os.getpid():08x}"
DAY = 86400.0


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    """A job of one node that has ended and is gathered."""
    made = EndedJob(tmp_path, ranks=1)
    made.end(Phase.SUCCEEDED, gathered_at=1.0)
    return made


@pytest.fixture
def gang(tmp_path: Path) -> EndedJob:
    """The same of three nodes."""
    made = EndedJob(tmp_path)
    made.end(Phase.SUCCEEDED, gathered_at=1.0)
    return made


def clean(job: EndedJob, **wish: Any) -> Cleaning:
    """Without trouble."""
    found, errors = cleaning.clean(job.experiments, job.cluster, Wish(**wish))
    assert errors == []
    return found


def there(job: EndedJob) -> list[bool]:
    """Whether each rank's folder is on its node."""
    return [job.folder(rank).exists() for rank in job.ranks]


def reasons(found: Cleaning) -> list[str]:
    return [stay.reason for stay in found.stays]


# ---- which jobs ----


def test_a_job_that_is_over_and_gathered_goes_from_all_nodes_and_stays_at_home(
    gang: EndedJob,
) -> None:
    gang.write(1, "big", b"x" * 100_000)
    gang.gather()
    found = clean(gang)
    assert there(gang) == [False, False, False]
    assert [(r.where, r.job_id, r.path) for r in found.removals] == [
        (f"gpu{rank}", gang.home.job_id, str(gang.folder(rank))) for rank in range(3)
    ]
    assert 100_000 <= found.removals[1].bytes <= 150_000
    assert gang.home.state().cleaned == ("gpu0", "gpu1", "gpu2")
    assert gang.home.record().name == "exp1"
    assert any(
        "inv clean removed its folder there" in event.message
        for event in gang.home.events()[0]
    )
    assert clean(gang).removals == []


def test_a_dry_run_tells_the_same_and_removes_nothing(job: EndedJob) -> None:
    told = clean(job, dry_run=True)
    assert there(job) == [True]
    assert job.home.state().cleaned == ()
    assert clean(job).removals == told.removals


@pytest.mark.parametrize(
    "phase", [Phase.QUEUED, Phase.PREPARING, Phase.RUNNING, Phase.STOPPING]
)
def test_a_job_that_is_not_over_is_not_touched(job: EndedJob, phase: Phase) -> None:
    job.end(phase, gathered_at=1.0)
    assert reasons(clean(job, at_home=True)) == [phase]
    assert there(job) == [True]


def test_a_job_that_is_not_gathered_is_not_touched(job: EndedJob) -> None:
    job.end(Phase.FAILED)
    assert reasons(clean(job, at_home=True)) == [
        f"not gathered; first: inv gather {job.home.job_id}"
    ]
    assert there(job) == [True]
    job.gather()
    clean(job)
    assert there(job) == [False]


def test_a_job_of_which_nothing_ever_ran_needs_no_gathering(job: EndedJob) -> None:
    job.end(Phase.STOPPED, started_at=None)
    clean(job)
    assert there(job) == [False]


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_job_that_cannot_be_read_is_not_touched(job: EndedJob, name: str) -> None:
    damage(job.home, name, b"{")
    [reason] = reasons(clean(job, at_home=True))
    assert name in reason
    assert there(job) == [True]


@pytest.mark.parametrize(("days", "goes"), [(29, False), (31, True)])
def test_older_than_counts_from_the_end(job: EndedJob, days: int, goes: bool) -> None:
    job.end(Phase.SUCCEEDED, gathered_at=1.0, ago_seconds=days * DAY)
    found = clean(job, older_than_seconds=30 * DAY)
    assert there(job) == [not goes]
    assert reasons(found) == ([] if goes else ["not old enough"])


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, EndedJob]:
    """Four jobs, gathered; a1 is the oldest."""
    made = {}
    for number, name in enumerate(("a", "b", "a", "b")):
        job = EndedJob(tmp_path, name, ranks=1, stamp=f"2026010{number + 1}_000000")
        job.end(Phase.SUCCEEDED, gathered_at=1.0)
        made[f"{name}{number // 2 + 1}"] = job
    return made


@pytest.mark.parametrize(
    ("wish", "left"),
    [
        ({}, []),
        ({"keep_last": 2}, ["a2", "b2"]),
        ({"keep_last": 9}, ["a1", "a2", "b1", "b2"]),
        ({"names": ("a",)}, ["b1", "b2"]),
        ({"names": ("a", "b")}, []),
        ({"names": ("a",), "keep_last": 1}, ["a2", "b1", "b2"]),
        ({"names": ("b_20260102_000000",)}, ["a1", "a2", "b2"]),
    ],
)
def test_the_jobs_in_question(
    jobs: dict[str, EndedJob], wish: dict[str, Any], left: list[str]
) -> None:
    clean(jobs["a1"], **wish)
    assert sorted(name for name, job in jobs.items() if any(there(job))) == left


def test_a_name_that_no_job_has_is_not_found(job: EndedJob) -> None:
    with pytest.raises(JobNotFound, match="did you mean exp1"):
        clean(job, names=("exp",))
    assert there(job) == [True]


# ---- on the nodes ----


def test_what_earlier_attempts_left_goes_too(tmp_path: Path) -> None:
    job = EndedJob(tmp_path, ranks=1, attempts=3)
    job.end(Phase.SUCCEEDED, gathered_at=1.0)
    assert len(clean(job).removals) == 3
    assert list(job.folder(0).parent.iterdir()) == []


@pytest.mark.parametrize("attempt", [0, 1])
def test_what_something_of_the_job_lives_in_stays(tmp_path: Path, attempt: int) -> None:
    job = EndedJob(tmp_path, ranks=1, attempts=2)
    job.end(Phase.SUCCEEDED, gathered_at=1.0)
    environment = {
        "UGRO_TOKEN": job.token(0, job.attempts[attempt]),
        "PATH": os.environ["PATH"],
    }
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        found = clean(job)
        process.kill()
    assert found.removals == []
    assert len(found.stays) == 2
    assert "something of the job lives there" in found.stays[0].reason
    assert job.home.state().cleaned == ()


def test_what_has_a_living_supervisor_stays(gang: EndedJob) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        (gang.folder(1) / "supervisor.json").write_text(
            json.dumps(identity(process.pid))
        )
        clean(gang)
        process.kill()
    assert there(gang) == [False, True, False]
    assert gang.home.state().cleaned == ("gpu0", "gpu2")


def test_folders_that_this_experiments_folder_does_not_know_stay_and_are_counted(
    job: EndedJob,
) -> None:
    jobs = job.folder(0).parent
    for name in (
        "exp1_20260101_000000.c0ffee00",
        f"{job.attempts[0][:-8]}deadbeef",
        "notes",
        "exp1",
    ):
        (jobs / name).mkdir()
    assert clean(job).foreign == {"gpu0": 2}
    assert len(list(jobs.iterdir())) == 4


def test_a_node_that_is_away_is_told_and_the_others_are_cleaned(gang: EndedJob) -> None:
    away = make_node(
        1, address="127.0.0.1", ssh_port=1, project=gang.cluster.nodes[1].project
    )
    nodes = (gang.cluster.nodes[0], away, gang.cluster.nodes[2])
    cluster = replace(gang.cluster, nodes=nodes)
    found, [error] = cleaning.clean(gang.experiments, cluster, Wish())
    assert isinstance(error, HostError)
    assert list(found.unreached) == ["gpu1"]
    assert there(gang) == [False, True, False]
    assert gang.home.state().cleaned == ("gpu0", "gpu2")


def test_a_node_that_is_left_out_stays_as_it_is(gang: EndedJob) -> None:
    found, _ = cleaning.clean(
        gang.experiments, gang.cluster.select("gpu0,gpu2"), Wish()
    )
    assert there(gang) == [False, True, False]
    assert reasons(found) == ["gpu1: not in the cluster file, or left out by --nodes"]


# ---- the node's own caution ----


def ask_node(project: Path, *names: str) -> dict[str, Any]:
    return node_cleaning.clean(
        {"folders": [[str(project), name] for name in names], "remove": True}
    )


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../jobs", "../../victim_20260120_120000.c0ffee00", "/etc", "exp1", "exp1_20260120_120000",
        "exp1_20260120_120000.c0ffee00/", "exp1_20260120_120000.c0ffee00/output", "exp1_20260120_120000.c0ffee00\n",
        "*_20260120_120000.c0ffee00",
    ],
)  # fmt: skip
def test_a_node_removes_nothing_but_a_jobs_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "jobs" / NAME / "output"
    folder.mkdir(parents=True)
    (tmp_path / "jobs" / "exp1").mkdir()
    assert ask_node(tmp_path, name)["folders"] == {}
    assert folder.exists()
    assert (tmp_path / "jobs" / "exp1").exists()


def test_a_link_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    name, victim = NAME, tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / name).symlink_to(victim)
    assert "it is a link" in ask_node(tmp_path, name)["folders"][name]["kept"]
    assert (victim / "deep").exists()


def test_a_link_inside_is_removed_and_not_followed(tmp_path: Path) -> None:
    name, victim = NAME, tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"x" * 1_000_000)
    (tmp_path / "jobs" / name).mkdir(parents=True)
    (tmp_path / "jobs" / name / "data").symlink_to(victim)
    facts = ask_node(tmp_path, name)["folders"][name]
    assert facts["removed"]
    assert facts["bytes"] < 100_000
    assert (victim / "file").exists()


def test_a_folder_with_the_plan_of_another_job_stays(tmp_path: Path) -> None:
    name = NAME
    folder = tmp_path / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(
        json.dumps({"token": "exp1_20260120_120000.deadbeef:gpu0:node"})
    )
    assert "another job" in ask_node(tmp_path, name)["folders"][name]["kept"]
    (folder / "plan.json").write_text("{")
    assert "cannot be read" in ask_node(tmp_path, name)["folders"][name]["kept"]
    assert folder.exists()


def test_a_file_with_two_names_is_counted_once(tmp_path: Path) -> None:
    """As in `resume/` of a second attempt, which shares the first one's checkpoint."""
    first, second = (f"{NAME}{attempt}" for attempt in ("", "-2"))
    for name in (first, second):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    (tmp_path / "jobs" / first / "weights").write_bytes(os.urandom(1_000_000))
    (tmp_path / "jobs" / second / "weights").hardlink_to(
        tmp_path / "jobs" / first / "weights"
    )
    told = ask_node(tmp_path, first, second)["folders"]
    assert 1_000_000 <= told[first]["bytes"] + told[second]["bytes"] < 1_100_000


# ---- at home ----


@pytest.fixture
def trained(tmp_path: Path) -> EndedJob:
    """Three whole checkpoints, of which the second is the best, and a fourth of which a part is missing."""
    job = EndedJob(tmp_path, ranks=2)
    job.end(Phase.SUCCEEDED, gathered_at=1.0)
    for step in (10, 20, 30, 40):
        for rank in job.ranks:
            store(
                job.home,
                f"checkpoint-{step}",
                step,
                rank,
                (0, 1),
                **{f"rank{rank}": b"x" * 1000},
            )
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 0.5, 25: 0.1}
    job.home.metrics.path.write_text(
        "".join(
            json.dumps({"step": step, "eval_loss": loss}) + "\n"
            for step, loss in losses.items()
        )
    )
    job.home.outputs.manifest(1, "checkpoint-40").remove()
    return job


def names(job: EndedJob) -> list[str]:
    return sorted(job.home.outputs.all_checkpoints())


def test_at_home_the_newest_whole_checkpoint_and_the_best_are_left(
    trained: EndedJob,
) -> None:
    told = clean(trained, at_home=True, dry_run=True)
    assert len(names(trained)) == 4
    found = clean(trained, at_home=True)
    gone = [(Path(r.path).name, r.bytes) for r in found.removals if r.where == HOME]
    assert sorted(gone) == [("checkpoint-10", 2000), ("checkpoint-40", 2000)]
    assert told.removals == found.removals
    assert names(trained) == ["checkpoint-20", "checkpoint-30"]
    assert [(c.name, c.missing) for c in fetched_checkpoints(trained.home)] == [
        ("checkpoint-20", None),
        ("checkpoint-30", None),
    ]
    assert list(trained.home.folder.rglob("checkpoint-10*")) == []


def test_without_the_flag_nothing_goes_at_home(trained: EndedJob) -> None:
    clean(trained)
    assert len(names(trained)) == 4


def test_what_another_job_goes_on_from_is_left(
    trained: EndedJob, tmp_path: Path
) -> None:
    other = EndedJob(tmp_path, "exp2", ranks=2)
    resume = Resume(job_id=trained.home.job_id, checkpoint="checkpoint-10", step=10)
    other.home.save_record(msgspec.structs.replace(other.home.record(), resume=resume))
    other.end(Phase.QUEUED)
    clean(trained, at_home=True)
    assert "checkpoint-10" in names(trained)


def test_of_checkpoints_without_manifests_the_newest_is_left(job: EndedJob) -> None:
    for number, name in enumerate(("b.pt", "c.pt", "a.pt")):
        path = job.write(0, f"checkpoints/{name}", b"weights")
        os.utime(path, (1000 + number, 1000 + number))
    job.gather()
    clean(job, at_home=True)
    assert names(job) == ["a.pt"]


def test_at_home_a_link_is_removed_and_not_followed(
    trained: EndedJob, tmp_path: Path
) -> None:
    (tmp_path / "victim").mkdir()
    (trained.home.outputs.checkpoints(0).path / "old").symlink_to(tmp_path / "victim")
    os.utime(
        trained.home.outputs.checkpoints(0).path / "old", (1, 1), follow_symlinks=False
    )
    (trained.home.outputs.checkpoints(0).path / "new.pt").touch()
    clean(trained, at_home=True)
    assert names(trained) == ["checkpoint-20", "checkpoint-30", "new.pt"]
    assert (tmp_path / "victim").is_dir()


def test_on_a_full_disk_here_the_nodes_are_cleaned_all_the_same(tmp_path: Path) -> None:
    with small_disk(tmp_path / "experiments", mebibytes=1) as disk:
        job = EndedJob(tmp_path, ranks=1)
        job.end(Phase.SUCCEEDED, gathered_at=1.0)
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(b"x" * (1 << 20))
        [reason] = reasons(clean(job, at_home=True))
        assert there(job) == [False]
        assert "No space left on device" in reason


# ---- as a user sees it ----


def test_the_sums_are_shown_for_each_place(
    trained: EndedJob, capsys: pytest.CaptureFixture[str]
) -> None:
    show_clean(clean(trained, at_home=True, dry_run=True), as_json=False)
    out = capsys.readouterr().out
    assert "would be removed" in out
    assert "checkpoint-10" in out
    assert re.search(
        r"would be freed; nothing was removed: home 3.9 KiB, gpu0 .* KiB, gpu1 .* KiB",
        out,
    )
    show_clean(clean(trained, at_home=True), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"][HOME] == 4000
    assert {removal["where"] for removal in told["removals"]} == {"gpu0", "gpu1", HOME}


def test_a_hundred_jobs_that_were_cleaned_ask_no_node_again(job: EndedJob) -> None:
    clean(job)
    gone = replace(
        job.cluster,
        nodes=tuple(make_node(rank, address="203.0.113.1") for rank in range(3)),
    )
    found, errors = cleaning.clean(job.experiments, gone, Wish())
    # A node that is asked there does not answer, which would be an error.
    assert (found.removals, errors) == ([], [])
