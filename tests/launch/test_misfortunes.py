"""Whole launches on three hosts in which something breaks: nothing is lost, nothing is left, the cause is named."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.tools import remove_in_use, wait_until
from lab.ugro import Ugro, is_agent
from tests.unit.factories import asked_to_stop
from ugro_tasks.jobs.experiment import Experiment


def test_a_link_cut_for_twenty_seconds_loses_no_byte(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    job = ugro.detach("exp1", "--seconds 30")
    job.wait_for_log("step 1", rank=1)
    hosts[1].cut()
    time.sleep(20)  # the promise is about this very length
    hosts[1].mend()
    assert job.wait_for("succeeded", "failed")["state"] == "succeeded"
    assert all(there == here for there, here in job.digests())
    assert "connected again" in (job.folder / "events.jsonl").read_text()


def test_an_offline_controller_gives_no_job_up(
    ugro: Ugro, lab: Lab, hosts: list[LabHost]
) -> None:
    ugro.set_timeouts(away_seconds=2, return_seconds=2, connect_seconds=1)
    job = ugro.detach("exp1", "--seconds 25", "--max-restarts", "2")
    job.wait_for_log("step 1", rank=1)
    lab.go_offline()
    time.sleep(15)  # seven times as long as a node may be away
    lab.go_online()
    state = job.wait_for("succeeded", "failed", "stopped")
    assert (state["state"], len(state["attempts"])) == ("succeeded", 1)
    assert all(there == here for there, here in job.digests())
    assert "no node answers" in (job.folder / "events.jsonl").read_text()


def test_an_agent_killed_in_mid_run_is_replaced_and_loses_nothing(ugro: Ugro) -> None:
    job = ugro.detach("exp1", "--seconds 6")
    job.wait_for_log("step 5")
    killed = ugro.kill_agent()
    assert killed
    assert "running" in ugro.run("status").stdout
    wait_until(lambda: ugro.agent_pid() not in {0, killed}, "another agent")
    assert ugro.run("attach", "exp1").returncode == 0
    assert all(there == here for there, here in job.digests())
    assert (job.folder / "metrics.jsonl").read_bytes().count(b"\n") > 50


@pytest.mark.parametrize("moment", [0.0, 0.2, 0.5])
def test_an_agent_killed_while_it_launches_leaves_a_job_that_the_next_one_launches(
    ugro: Ugro, moment: float
) -> None:
    command = ugro.start("launch", "--name", "exp1", "--args", "--seconds 1")
    wait_until(lambda: ugro.agent_pid() != 0, "the agent")
    time.sleep(moment)
    assert ugro.kill_agent()
    out, err = command.communicate(timeout=150)
    assert command.returncode == 0, out + err
    assert all(there == here for there, here in ugro.job("exp1").digests())


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("rehearse.py", "killed by SIGKILL"),
        ("torch.distributed.run", "killed by SIGKILL"),
        ("node.zip", "lost its supervisor"),
    ],
    ids=["rank", "torchrun", "supervisor"],
)
def test_what_is_killed_on_one_node_ends_the_others_soon(
    ugro: Ugro, hosts: list[LabHost], victim: str, words: str
) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    job.wait_for_log("step 1", rank=1)
    hosts[1].kill(job.pid(hosts[1], victim))
    # Five seconds where this machine has nothing else to do: benchmarks/ending.py. By themselves they wait for minutes.
    assert job.seconds_until_gone(limit=30) < 30
    state = job.wait_for("failed")
    assert state["cause"]["node"] == "lab1"
    assert words in state["cause"]["message"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    "victim",
    ["rehearse.py", "torch.distributed.run", "node.zip"],
    ids=["rank", "torchrun", "supervisor"],
)
def test_a_signal_that_nobody_asked_for_is_no_success(
    ugro: Ugro, hosts: list[LabHost], victim: str, signum: signal.Signals
) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    job.wait_for_log("step 1", rank=1)
    hosts[1].kill(job.pid(hosts[1], victim), signum)
    assert job.seconds_until_gone(limit=30) < 30
    state = job.wait_for("failed", "succeeded", "stopped")
    assert state["state"] == "failed"
    assert state["cause"]["node"] == "lab1"
    assert ugro.run("attach", "exp1").returncode == 7


def test_a_node_that_is_shut_down_is_the_cause_and_the_job_begins_again(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    job = ugro.detach("exp1", "--seconds 15", "--max-restarts", "1")
    job.wait_for_log("step 1", rank=1)
    hosts[1].shut_down()
    state = job.wait_for("failed", "succeeded", "stopped")
    assert state["state"] == "succeeded"
    first, second = state["attempts"]
    assert first["cause"]["node"] == "lab1"
    assert second["cause"] is None
    assert all(rank["exit_code"] == 0 for rank in state["ranks"])


def test_a_reset_under_a_job_stops_it_for_good(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    job = ugro.detach("exp1", "--seconds 600", "--max-restarts", "3")
    job.wait_for_log("step 1", rank=1)
    assert ugro.run("reset", "--nodes", "lab1").returncode == 0
    state = job.wait_for("failed", "succeeded", "stopped")
    assert (state["state"], state["reason"]) == ("stopped", "reset")
    assert len(state["attempts"]) == 1
    assert job.left() == []
    done = ugro.run("attach", "exp1")
    assert done.returncode == 130
    assert "lab1 was reset by root@" in done.stderr + done.stdout


def test_a_node_that_reboots_is_the_cause(ugro: Ugro, hosts: list[LabHost]) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    job.wait_for_log("step 1", rank=1)
    hosts[1].reboot()
    state = job.wait_for("failed")
    assert "lab1 was rebooted" in state["cause"]["message"]
    assert job.left() == []


def test_a_dead_sshd_at_launch_starts_nothing_anywhere(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    hosts[1].stop_sshd(sessions=True)
    done = ugro.launch("unheard", "--seconds 1")
    assert done.returncode == 5
    assert "lab1" in done.stderr
    assert "refused" in done.stderr
    assert not [
        path for host in hosts for path in host.path("ugro/jobs").glob("unheard_*")
    ]


def test_a_host_with_another_key_is_not_spoken_to(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    hosts[0].new_host_key()
    done = ugro.launch("exp1", "--seconds 1")
    assert done.returncode == 5
    assert "host key has changed" in done.stderr
    assert "ssh-keygen -R 10." in done.stderr


def test_a_node_that_cannot_prepare_undoes_the_others(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    hosts[1].run(
        [
            "sh",
            "-c",
            "mkdir -p /root/ugro/jobs && mv /root/ugro/jobs /root/ugro/away && touch /root/ugro/jobs",
        ]
    )
    try:
        done = ugro.launch("undone", "--seconds 1")
    finally:
        hosts[1].run(
            ["sh", "-c", "rm /root/ugro/jobs && mv /root/ugro/away /root/ugro/jobs"]
        )
    assert done.returncode == 8, done.stderr
    assert "lab1" in done.stderr
    assert not [
        path for host in hosts for path in host.path("ugro/jobs").glob("undone_*")
    ]
    assert ugro.launch("exp2", "--seconds 0.1").returncode == 0


def test_a_stop_reaches_a_node_that_was_cut_off(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    job.wait_for_log("step 1", rank=1)
    hosts[1].cut()
    stopping = ugro.start("stop", "exp1")
    wait_until(lambda: not job.processes(hosts[0]), "the first host to be free", 20)
    assert job.processes(hosts[1])
    hosts[1].mend()
    out, err = stopping.communicate(timeout=150)
    assert stopping.returncode == 0, out + err
    assert job.left() == []


def test_a_job_whose_node_will_not_come_back_can_be_given_up(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    ugro.set_timeouts(connect_seconds=1)
    job = ugro.detach("exp1", "--seconds 600")
    job.wait_for_log("step 1", rank=1)
    hosts[1].cut()
    done = ugro.run("stop", "exp1", "--give-up")
    assert done.returncode == 9, done.stderr
    assert "later: ugro reset --nodes lab1" in done.stderr
    assert job.state()["state"] == "stopped"
    assert job.processes(hosts[0]) == []
    hosts[1].mend()
    assert ugro.run("reset", "--nodes", "lab1").returncode == 0
    assert job.left() == []


def test_a_copy_of_the_folder_is_left_alone_while_the_job_goes_on(
    ugro: Ugro, lab: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    job = ugro.detach("exp1", "--seconds 10", "--max-restarts", "1")
    job.wait_for_log("step 1", rank=1)
    (tmp_path / "copy").mkdir()
    copy = Ugro(lab, tmp_path / "copy", hosts=2)
    shutil.copytree(ugro.experiments, copy.experiments, symlinks=True)
    done = copy.run("status", "exp1")
    assert done.returncode == 0
    words = f"it is supervised in {job.folder}, of which this folder is a copy"
    assert words in done.stderr
    assert copy.agent_pid() == 0
    assert words in copy.run("stop", "exp1").stderr
    assert not asked_to_stop(Experiment(copy.job("exp1").folder))
    hosts[1].kill(job.pid(hosts[1], "rehearse.py"))
    state = job.wait_for("succeeded", "failed", "stopped")
    assert (state["state"], len(state["attempts"])) == ("succeeded", 2)
    wait_until(
        lambda: "it has ended in" in copy.run("status").stderr, "the end to be known"
    )
    assert copy.agent_pid() == 0


def test_a_folder_that_was_moved_to_another_disk_is_gone_on_with_there(
    ugro: Ugro, lab: Lab, tmp_path: Path
) -> None:
    job = ugro.detach("exp1", "--seconds 6")
    job.wait_for_log("step 1", rank=1)
    before = ugro.agent_pid()
    (tmp_path / "moved").mkdir()
    moved = Ugro(lab, tmp_path / "moved", hosts=2)
    # As `mv` does it between two disks.
    shutil.copytree(ugro.experiments, moved.experiments, symlinks=True)
    remove_in_use(ugro.experiments)
    wait_until(lambda: moved.run("status").stderr == "", "the jobs to be offered")
    wait_until(lambda: not is_agent(before, ugro.experiments), "the agent to leave")
    state = moved.job("exp1").wait_for("succeeded", "failed")
    assert state["state"] == "succeeded"
    assert all(there == here for there, here in moved.job("exp1").digests())
    moved.close()


def test_a_job_that_ended_while_no_agent_lived_is_not_run_again(ugro: Ugro) -> None:
    job = ugro.detach("exp1", "--seconds 2")
    ugro.close()
    # As an agent leaves it that is killed between the start and its word about it.
    state = job.state()
    (job.folder / "state.json").write_text(
        json.dumps({**state, "state": "preparing", "started_at": None})
    )
    wait_until(lambda: not job.left(), "the ranks to end", 20)
    assert ugro.run("attach", "exp1").returncode == 0
    assert (job.folder / "logs" / "training_rank0.log").read_text().count(
        "rank 0 step 0\n"
    ) == 1
    assert all(there == here for there, here in job.digests())
