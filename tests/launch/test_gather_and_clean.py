"""Outputs that come home and disks that are freed."""

import hashlib
import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from lab import LabHost
from lab.proof import send_signal
from lab.tools import pids, read_proc, wait_until
from lab.ugro import Job, Ugro
from tests.unit.factories import make_node_plan, make_plan_of, make_record
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import JobState, RankState

MIB = 1 << 20


def folders(host: LabHost, job: Job) -> list[Path]:
    """Those of the job on a host."""
    return list(host.path("ugro/jobs").glob(f"{job.folder.name}.*"))


def job_of_one_node(ugro: Ugro) -> Job:
    """One that ran on the first host and has ended, as far as its experiment folder says; nothing was launched."""
    cluster = load_cluster(str(ugro.cluster_file)).select("lab0")
    experiments = Experiments(cluster.experiments)
    made = experiments.create(make_record(cluster), cluster.scripts)
    plan = make_node_plan(0, node="lab0", folder=f"~/ugro/jobs/{made.job_id}.c0ffee00")
    made.save_record(msgspec.structs.replace(made.record(), plan=make_plan_of((plan,))))
    ranks = (RankState(rank=0, node="lab0", proven_gone=True),)
    made.save_state(
        JobState(phase=Phase.SUCCEEDED, started_at=1.0, ended_at=2.0, ranks=ranks)
    )
    return Job(ugro, made.folder)


def test_clean_frees_the_hosts_of_what_is_gathered_and_leaves_what_runs(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    assert ugro.launch("over", "--seconds 0.1").returncode == 0
    over = ugro.job("over")
    assert ugro.run("gather", "over").returncode == 0
    assert over.state()["gathered_at"]
    runs = ugro.detach("runs", "--seconds 600")

    told = json.loads(ugro.run("clean", "--dry-run", "--json").stdout)
    assert [(r["where"], r["job_id"]) for r in told["removals"]] == [
        (host.name, over.folder.name) for host in ugro.hosts
    ]
    assert told["stays"] == [{"job_id": runs.folder.name, "reason": "running"}]
    assert all(len(folders(host, over)) == 1 for host in ugro.hosts)
    done = ugro.run("clean", "--keep-last", "1")
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stdout
    assert [folders(host, over) for host in ugro.hosts] == [[], []]
    assert all(
        runs.processes(host) and len(folders(host, runs)) == 1 for host in ugro.hosts
    )
    assert (
        over.folder / "checkpoints" / "last.pt"
    ).read_bytes() == b"weights of rank 0"

    hosts[1].path(
        f"ugro/jobs/{folders(hosts[1], runs)[0].name}/output/so-far"
    ).write_text("of rank 1")
    assert ugro.run("gather", "runs").returncode == 0
    assert (runs.folder / "outputs" / "1" / "so-far").read_text() == "of rank 1"
    assert runs.state()["gathered_at"] is None
    assert ugro.run("stop", "runs").returncode == 0


def test_the_rest_of_the_logs_of_a_job_that_was_given_up_comes_before_it_counts_as_gathered(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    ugro.set_timeouts(connect_seconds=1)
    job = ugro.detach("away", "--seconds 100")
    job.wait_for_log("step 1", rank=1)
    hosts[1].cut()
    assert ugro.run("stop", "away", "--give-up").returncode == 9
    # It would tell the rank to stop.
    ugro.kill_agent()
    hosts[1].mend()
    early = ugro.run("gather", "away")
    assert early.returncode == 25
    assert "lab1: rank 1 still runs there" in early.stderr
    hosts[1].kill(job.pid(hosts[1], "rehearse.py"))
    wait_until(lambda: not job.processes(hosts[1]), "rank 1 to end", 60)
    kept = ugro.run("clean", "away")
    assert "not gathered; first: ugro gather" in kept.stdout + kept.stderr
    assert len(folders(hosts[1], job)) == 1
    done = ugro.run("gather", "away")
    assert done.returncode == 0, done.stderr
    assert all(there == here for there, here in job.digests())
    assert job.state()["gathered_at"]
    assert ugro.run("clean", "away").returncode == 0
    assert [folders(host, job) for host in ugro.hosts] == [[], []]


def test_checkpoints_on_another_disk_come_home_and_other_links_are_named(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    big = hosts[0].path("bigdisk/step5")
    big.mkdir(parents=True)
    (big / "model.bin").write_bytes(b"weights")
    job = ugro.detach("linked", "--seconds 8")
    output = folders(hosts[0], job)[0] / "output"
    (output / "artifacts").mkdir(exist_ok=True)
    (output / "artifacts" / "best").symlink_to(f"{hosts[0].home}/bigdisk/step5")
    (output / "data").symlink_to("/etc")
    done = ugro.run("attach", "linked")
    assert done.returncode == 14, done.stdout + done.stderr
    assert done.stderr.rstrip().endswith(f"get it: ugro gather {job.folder.name}")
    assert "data: it leads to /etc" in done.stdout
    assert job.state()["state"] == "succeeded"
    assert (job.folder / "artifacts" / "best" / "model.bin").read_bytes() == b"weights"
    assert ugro.run("clean", "linked").returncode == 0
    assert output.exists()
    assert ugro.run("gather", "linked").returncode == 25
    assert ugro.run("gather", "linked", "--leave-links").returncode == 0
    assert ugro.run("attach", "linked").returncode == 0
    assert ugro.run("clean", "linked").returncode == 0
    assert [folders(host, job) for host in ugro.hosts] == [[], []]
    assert (big / "model.bin").exists()


@pytest.mark.needs("rsync")
def test_a_gather_that_is_broken_off_leaves_nothing_half_and_goes_on(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    job = job_of_one_node(ugro)
    there = hosts[0].path(f"ugro/jobs/{job.folder.name}.c0ffee00/output/model.bin")
    there.parent.mkdir(parents=True)
    content = os.urandom(24 * MIB)
    there.write_bytes(content)
    hosts[0].slow(delay_ms=20)  # else it is done before it can be broken off
    gathering = ugro.start("gather", "exp1")
    wait_until(
        lambda: any(
            f.stat().st_size > MIB for f in job.folder.glob("outputs/0/.model.bin.*")
        ),
        "some of it",
        30,
    )

    def is_transfer(pid: int) -> bool:
        argv = read_proc(pid, "cmdline")
        return b"rsync" in argv and str(job.folder).encode() in argv

    transfers = [pid for pid in pids() if is_transfer(pid)]
    assert send_signal(transfers[0], signal.SIGTERM, is_transfer)
    _, err = gathering.communicate(timeout=150)
    assert gathering.returncode in {21, 25}, err
    assert "lab0: " in err
    outputs = job.folder / "outputs" / "0"
    assert not (outputs / "model.bin").exists()
    assert (outputs / ".ugro-partial" / "model.bin").stat().st_size > MIB
    hosts[0].fast()
    assert ugro.run("gather", "exp1").returncode == 0
    here = (outputs / "model.bin").read_bytes()
    assert hashlib.sha256(here).hexdigest() == hashlib.sha256(content).hexdigest()
    assert not (outputs / ".ugro-partial").exists()
