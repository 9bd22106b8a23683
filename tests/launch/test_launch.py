"""Whole launches, with real torchrun: what works, and what a user sees of it.

One on three hosts that succeeds, and all that is left of it: test_owners_examples.py.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.ugro import Ugro

ROOT = Path(__file__).parents[2]


def test_the_plan_that_is_shown_is_the_plan_that_runs(ugro: Ugro) -> None:
    shown = json.loads(
        ugro.launch("exp1", "--seconds 0.1", "--dry-run", "--json").stdout
    )["plan"]
    assert not list(ugro.experiments.glob("exp1_*"))
    assert ugro.launch("exp1", "--seconds 0.1").returncode == 0
    ran = json.loads((ugro.job("exp1").folder / "config.json").read_text())["plan"]
    ids = [
        re.findall(r"exp1_[^:\"/ ]*", plan["nodes"][0]["token"])[0]
        for plan in (ran, shown)
    ]
    as_shown = (
        json.dumps(ran).replace(ids[0], ids[1]).replace(ran["job_id"], shown["job_id"])
    )
    assert json.loads(as_shown) == shown


def test_arguments_and_variables_arrive_byte_for_byte(ugro: Ugro) -> None:
    hostile = '$(touch /tmp/owned) `id` "it\'s" ; ü'
    done = ugro.launch(
        "exp1", f"--echo {shlex.quote(hostile)}", "--env", f"ECHO={hostile}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"echo {hostile!r} {hostile!r}" in done.stdout


def test_what_a_script_leaves_behind_is_ended_and_named(ugro: Ugro) -> None:
    done = ugro.launch("exp1", "--daemon")
    assert done.returncode == 0
    ranks = ugro.job("exp1").state()["ranks"]
    for rank in ranks:
        [outlived] = rank["outlived"]
        assert re.fullmatch(r"pid \d+ \(sleep 600\)", outlived)
        words = f"exit code 0; went on without it, and was ended: {outlived}"
        assert f"rank {rank['rank']} ended: {words}" in done.stdout
        assert words in ugro.run("status", "exp1").stdout
    assert ugro.job("exp1").left() == []


def test_bytes_that_are_no_text_are_kept_and_never_reach_the_terminal_raw(
    ugro: Ugro,
) -> None:
    raw = b"\x1b]0;owned\x07\x1b[31mred\x1b[0m \xff\xfe\x00 \xe2\x82\n"
    done = ugro.launch("exp1", f"--raw {raw.hex()}")
    assert done.returncode == 0
    job = ugro.job("exp1")
    assert raw in (job.folder / "logs" / "training_rank0.log").read_bytes()
    assert all(there == here for there, here in job.digests())
    assert "red" in done.stdout
    assert not set(done.stdout) & set("\x1b\x07\x00")


def test_five_megabytes_from_each_rank_arrive_whole(ugro: Ugro) -> None:
    done = ugro.launch("exp1", "--bytes 5000000", "--quiet")
    assert done.returncode == 0
    assert "xxx" not in done.stdout
    digests = ugro.job("exp1").digests()
    assert all(there == here for there, here in digests)
    assert (
        ugro.job("exp1").folder / "logs" / "training_rank1.log"
    ).stat().st_size >= 5_000_000


def test_the_cards_are_sampled_while_a_job_runs(
    ugro: Ugro, hosts: list[LabHost]
) -> None:
    hosts[1].nvidia_smi("rtx4070")  # a stand-in that replays recorded output
    assert ugro.launch("exp1", "--seconds 1").returncode == 0
    samples = [
        json.loads(line)
        for line in (ugro.job("exp1").folder / "gpu.jsonl").read_text().splitlines()
    ]
    assert {sample["node"] for sample in samples} == {"lab1"}
    assert "RTX 4070" in samples[0]["name"]
    assert float(samples[0]["memory.used"]) >= 0


def test_detach_returns_when_all_ranks_run_and_attach_follows_to_the_end(
    ugro: Ugro,
) -> None:
    job = ugro.detach("exp1", "--seconds 4")
    assert job.state()["state"] == "running"
    assert all(job.processes(host) for host in ugro.hosts)
    done = ugro.run("attach", "exp1")
    assert done.returncode == 0
    assert "rank 1 step 0" in done.stdout


def test_ctrl_c_in_attach_only_leaves(ugro: Ugro) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    attached = ugro.start("attach", "exp1")
    assert attached.stdout
    attached.stdout.readline()
    attached.send_signal(signal.SIGINT)
    out, err = attached.communicate(timeout=120)
    assert attached.returncode == 0, (out, err)
    assert "goes on" in err
    assert job.state()["state"] == "running"
    assert ugro.run("stop", "exp1").returncode == 0


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGHUP], ids=["killed", "terminal closed"]
)
def test_the_end_of_the_command_changes_nothing_for_the_job(
    ugro: Ugro, how: signal.Signals
) -> None:
    command = ugro.start("launch", "--name", "exp1", "--args", "--seconds 3")
    assert command.stdout
    for line in command.stdout:
        if "step 0" in line:
            break
    os.killpg(command.pid, how)
    command.communicate()
    job = ugro.job("exp1")
    job.wait_for("succeeded")
    assert all(there == here for there, here in job.digests())


def test_stop_returns_with_the_proof(ugro: Ugro) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    done = ugro.run("stop", "exp1")
    assert done.returncode == 0, done.stderr
    assert job.left() == []
    assert job.state()["state"] == "stopped"
    assert all(rank["proven_gone"] for rank in job.state()["ranks"])


def test_ctrl_c_stops_everywhere_and_the_next_launch_works_at_once(ugro: Ugro) -> None:
    command = ugro.start("launch", "--name", "exp1", "--args", "--seconds 600")
    assert command.stdout
    for line in command.stdout:
        if "step 0" in line:
            break
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 130, (out, err)
    assert ugro.job("exp1").left() == []
    assert ugro.launch("exp2", "--seconds 0.1").returncode == 0


def test_a_script_that_ignores_term_is_killed_after_its_grace_with_all_that_it_forked(
    ugro: Ugro,
) -> None:
    job = ugro.detach("exp1", "--seconds 600 --ignore-term --daemon")
    job.wait_for_log("step 1")
    done = ugro.run("stop", "exp1")
    assert done.returncode == 0, done.stderr
    assert job.left() == []


def test_what_a_script_forked_and_left_behind_ends_with_it(ugro: Ugro) -> None:
    assert ugro.launch("exp1", "--daemon").returncode == 0
    assert ugro.job("exp1").left() == []


def test_a_second_launch_on_the_same_nodes_is_told_who_holds_them(
    ugro: Ugro, lab: Lab, tmp_path: Path
) -> None:
    job = ugro.detach("exp1", "--seconds 600")
    second = ugro.launch("exp2", "--seconds 1")
    assert second.returncode == 6
    assert job.folder.name in second.stderr
    (tmp_path / "other").mkdir()
    other = Ugro(lab, tmp_path / "other", hosts=2)
    third = other.launch("exp3", "--seconds 1")
    assert third.returncode == 6
    assert job.folder.name in third.stderr
    assert str(ugro.experiments) in third.stderr
    assert ugro.run("health").stdout.count(job.folder.name) == 2
    other.close()
    ugro.run("stop", "exp1")


def test_of_two_launches_in_the_same_moment_one_runs_and_one_is_refused(
    ugro: Ugro, lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Ugro(lab, tmp_path / "other", hosts=2)
    both = [
        who.start("launch", "--name", "race", "--args", "--seconds 15")
        for who in (ugro, other)
    ]
    codes = [
        (process.communicate(timeout=150), process.returncode)[1] for process in both
    ]
    # Each may have taken a node before the other: then both are undone, and nothing runs.
    assert sorted(codes) in ([0, 6], [6, 6])
    other.close()


@pytest.mark.parametrize(
    "name",
    [
        "../exp1",
        "/tmp/exp1",
        "exp1/x",
        "$(touch owned)",
        "`id`",
        "a;b",
        "a b",
        "-rf",
        "",
        "é",
        "x" * 200,
        "a\nb",
    ],
)
def test_a_name_that_tries_to_be_a_path_or_a_command_is_refused(
    ugro: Ugro, name: str
) -> None:
    done = ugro.run("launch", f"--name={name}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not ugro.experiments.exists()


def test_a_rank_that_raises_is_the_cause_with_its_own_traceback(ugro: Ugro) -> None:
    done = ugro.launch("exp1", "--fail-rank 1")
    assert done.returncode == 7
    assert "rank 1 on lab1" in done.stderr
    assert "ValueError: the learning rate went to the moon" in done.stderr
    assert "torch/distributed" not in done.stderr
    assert ugro.job("exp1").left() == []
    assert ugro.job("exp1").state()["cause"]["rank"] == 1


def test_a_rank_that_exits_is_named_with_its_code(ugro: Ugro) -> None:
    assert ugro.launch("exp1", "--fail-rank 1 --fail-code 42").returncode == 7
    cause = ugro.job("exp1").state()["cause"]
    assert (cause["node"], cause["rank"], cause["exit_code"]) == ("lab1", 1, 42)


def test_the_local_cluster_runs_and_stops(lab: Lab, tmp_path: Path) -> None:
    home = {**lab.environ, "UGRO_CLUSTER": "local", "HOME": str(tmp_path)}
    (tmp_path / ".ugro").mkdir()
    (tmp_path / ".ugro" / "env").symlink_to(ROOT / ".ugro" / "env")
    ugro = [str(ROOT / ".venv/bin/python"), "-m", "ugro_tasks.cli.program"]
    launch = shlex.join(
        [
            *ugro,
            "launch",
            "--name",
            "exp1",
            "--args",
            "--steps-per-epoch 500",
            "--detach",
        ]
    )
    # Where it sees no other process and no other lease: a job that whoever runs the tests has here would keep the
    # nodes from it. And all that it leaves behind ends with the first process there.
    apart = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child=KILL",
    ]
    done = subprocess.run(
        [*apart, "sh", "-c", f"ip link set lo up && {launch} && {shlex.join([*ugro, 'stop', 'exp1'])}; exit $?"],
        env=home, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "experiments").glob("exp1_*")
    assert json.loads((folder / "state.json").read_text())["state"] == "stopped"


def test_an_output_with_a_name_of_ugros_own_takes_nothings_place(ugro: Ugro) -> None:
    assert ugro.launch("exp1", "--clash").returncode == 0
    job = ugro.job("exp1").folder
    assert json.loads((job / "config.json").read_text())["job_name"] == "exp1"
    assert (job / "outputs" / "0" / "config.json").read_text() == "a model's"
    assert "succeeded" in ugro.run("status", "exp1").stdout
