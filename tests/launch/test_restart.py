"""Checkpoints come home as they appear, and a run goes on from the last one that is whole on all ranks."""

import json
from contextlib import ExitStack

import pytest

from lab import LabHost
from lab.tools import wait_until
from lab.ugro import Job, Ugro
from tests.hosts.helpers import rsync_says

COUNTING = ("--script", "counting.py")


def steps(job: Job) -> list[int]:
    """The steps of metrics.jsonl, as they stand there."""
    return [
        json.loads(line)["step"]
        for line in (job.folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_after_a_failed_rank_all_go_on_from_the_last_whole_checkpoint(
    ugro: Ugro,
) -> None:
    done = ugro.launch(
        "exp1", "--steps 20 --die-unless-resumed 13", *COUNTING, "--max-restarts", "1"
    )
    job = ugro.job("exp1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "restart 1 of 1" in done.stdout
    for rank in range(2):
        log = (job.folder / "logs" / f"training_rank{rank}.log").read_text()
        assert f"rank {rank} goes on from step 10, own part: True" in log
        assert f"rank {rank} of 2 step 20\n" in log
    assert steps(job)[-10:] == list(range(11, 21))
    attempts = job.state()["attempts"]
    assert [attempt["number"] for attempt in attempts] == [1, 2]
    assert attempts[0]["cause"]["rank"] == 1
    assert attempts[1]["resume"]["checkpoint"] == "checkpoint-10"
    assert sorted(path.name for path in (job.folder / "manifests/0").iterdir()) == [
        f"checkpoint-{step}.json" for step in (10, 15, 20, 5)
    ]
    # What all ranks have alike came once; their own parts came from each.
    assert sorted(
        p.name for p in (job.folder / "outputs/1/checkpoints/checkpoint-20").iterdir()
    ) == ["rng_1.json"]
    assert job.left() == []


def test_without_rsync_on_the_hosts_checkpoints_and_outputs_come_and_go_the_same(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    with ExitStack() as all_at_once:
        for host in ugro.hosts:
            all_at_once.enter_context(rsync_says(host, "#!/bin/sh\nexit 127\n"))
        words = "--steps 20 --die-unless-resumed 13"
        done = ugro.launch("exp1", words, *COUNTING, "--max-restarts", "1")
        assert done.returncode == 0, done.stdout + done.stderr
        job = ugro.job("exp1")
        for rank in range(2):
            log = (job.folder / "logs" / f"training_rank{rank}.log").read_text()
            assert f"rank {rank} goes on from step 10, own part: True" in log
        assert ugro.run("gather", "exp1", "--verify").returncode == 0
    assert job.state()["gathered_at"]
    for rank, host in enumerate(ugro.hosts):
        (there,) = host.path("ugro/jobs").glob(f"{job.folder.name}.*-2.*/output")
        here = job.folder / "outputs" / str(rank)
        parts = [path for path in there.glob("checkpoints/*/*") if path.is_file()]
        assert parts
        for path in parts:
            name = path.relative_to(there)
            ours = here / name
            if not ours.exists():  # what all ranks have alike comes once, from rank 0
                ours = job.folder / "outputs/0" / name
            assert ours.read_bytes() == path.read_bytes(), name


def test_a_run_that_fails_again_and_again_ends_with_its_last_cause(ugro: Ugro) -> None:
    done = ugro.launch(
        "exp1", "--steps 20 --die-at 7", *COUNTING, "--max-restarts", "1"
    )
    assert done.returncode == 7
    assert "rank 1 on lab1: exit code 3" in done.stderr
    assert [attempt["number"] for attempt in ugro.job("exp1").state()["attempts"]] == [
        1,
        2,
    ]


def test_resume_goes_on_in_a_new_job_on_fewer_nodes_and_passes_over_what_is_half(
    ugro: Ugro,
) -> None:
    assert ugro.launch("exp1", "--steps 15 --half", *COUNTING).returncode == 0
    first = ugro.job("exp1")
    # As long, and damaged.
    (first.folder / "checkpoints/checkpoint-10/model.bin").write_bytes(b"9 " * 100_000)
    done = ugro.launch("exp2", "--steps 15", "--resume", "exp1", "--nodes", "lab0")
    assert done.returncode == 0, done.stdout + done.stderr
    second = ugro.job("exp2")
    assert (
        json.loads((second.folder / "config.json").read_text())["script"]
        == "counting.py"
    )
    log = (second.folder / "logs" / "training_rank0.log").read_text()
    assert "rank 0 goes on from step 5, own part: True" in log
    assert steps(second) == list(range(1, 16))


def test_what_cannot_be_resumed_is_told_why(ugro: Ugro) -> None:
    done = ugro.run("launch", "--resume", "exp9")
    assert done.returncode == 4
    assert (
        ugro.launch("exp1", "--steps 2", *COUNTING, "--nodes", "lab0").returncode == 0
    )
    done = ugro.run("launch", "--resume", "exp1")
    assert done.returncode == 2
    assert "no checkpoint to go on from" in done.stderr
    assert len(list(ugro.experiments.glob("exp*"))) == 1


@pytest.mark.parametrize("away", [0, 1])
def test_a_node_that_stays_away_is_left_behind(
    ugro: Ugro, hosts: list[LabHost], away: int
) -> None:
    ugro.set_timeouts(away_seconds=2, return_seconds=3, connect_seconds=1)
    job = ugro.detach(
        "exp1",
        "--steps 200 --step-seconds 0.05 --save-every 20",
        *COUNTING,
        "--max-restarts",
        "1",
        "--min-nodes",
        "1",
    )
    whole = job.folder / "manifests/1/checkpoint-20.json"
    wait_until(whole.exists, "the first checkpoint to be whole at home", 40)
    hosts[away].cut()
    wait_until(lambda: len(job.state()["attempts"]) == 2, "the second attempt", 60)
    ugro.close()  # the next agent knows of it, too
    ugro.run("attach", "exp1")
    state = job.wait_for("succeeded", seconds=90)
    assert job.processes(hosts[away])  # it cannot know
    hosts[away].mend()
    wait_until(
        lambda: not job.processes(hosts[away]), "what was left behind to be stopped", 40
    )
    assert state["attempts"][1]["nodes"] == [f"lab{1 - away}"]
    assert state["attempts"][0]["left_behind"] == [f"lab{away}"]
    assert state["attempts"][1]["resume"]["step"] >= 20
