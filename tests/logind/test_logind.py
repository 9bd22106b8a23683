"""Jobs on a machine whose logind ends what a login has started: with a real systemd, logind, PAM and polkit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from lab.systemd import SystemdHost
from lab.tools import wait_until
from lab.ugro import Ugro

Boot = Callable[..., SystemdHost]
KILLS = "KillUserProcesses=yes"
REMOVES = "RemoveIPC=yes"
DEAF = "trap '' TERM"


def scopes(host: SystemdHost) -> list[str]:
    """Return the cgroups of UGRO's jobs on a host."""
    find = ["find", "/sys/fs/cgroup", "-name", "ugro-*.scope"]
    return host.run(find).stdout.splitlines()


def linger(host: SystemdHost) -> None:
    """Do what `inv health` advises, as the user of the node."""
    host.log_in("loginctl enable-linger")


def test_where_a_logout_would_end_a_job_it_is_refused_with_the_remedy(
    ugro: Ugro, boot: Boot
) -> None:
    host = boot(KILLS)
    done = ugro.launch("exp1", "--seconds 1")
    said = done.stderr + done.stdout
    assert done.returncode == 5, said
    assert "KillUserProcesses=yes" in said
    assert "on lab1: loginctl enable-linger" in said
    linger(host)
    assert ugro.launch("exp1", "--seconds 1").returncode == 0


@pytest.mark.parametrize(
    ("logind", "lingers"),
    [((KILLS, REMOVES), True), ((REMOVES,), True), ((REMOVES,), False)],
    ids=["killed, but lingering", "lingering", "not lingering"],
)
def test_a_job_goes_on_when_its_logins_end_and_a_second_one_is_refused(
    ugro: Ugro, boot: Boot, logind: tuple[str, ...], lingers: bool
) -> None:
    host = boot(*logind)
    if lingers:
        linger(host)
    job = ugro.detach("first", "--seconds 10")
    job.wait_for_log("step 1", rank=1)
    assert len(scopes(host)) == int(lingers)
    ugro.kill_agent()
    host.break_logins()
    if lingers:
        wait_until(lambda: not host.logins(), "all logins to have ended")
    second = ugro.launch("second", "--seconds 1", "--nodes", "lab1")
    assert second.returncode == 6, second.stderr
    assert f"lab1: held by job {job.folder.name}" in second.stderr
    assert ugro.run("attach", "first").returncode == 0
    assert job.state()["state"] == "succeeded"
    wait_until(lambda: not scopes(host), "the scope to be removed")


def test_a_job_whose_user_is_logged_out_by_the_administrator_has_failed(
    ugro: Ugro, boot: Boot
) -> None:
    host = boot()
    linger(host)
    job = ugro.detach("exp1", "--seconds 60")
    job.wait_for_log("step 1", rank=1)
    host.run(["loginctl", "terminate-user", host.user])
    state = job.wait_for("succeeded", "failed")
    assert state["state"] == "failed"
    assert state["cause"]["node"] == "lab1"
    assert job.left() == []


def test_what_is_in_the_jobs_cgroup_is_its_own_under_any_name(
    ugro: Ugro, boot: Boot
) -> None:
    """A process without a token, that no supervisor has noted, and whose ancestors are all dead."""
    host = boot()
    linger(host)
    job = ugro.detach("exp1", "--seconds 60 --hide")
    job.wait_for_log("step 1", rank=1)
    [hidden] = [pid for pid, argv in host.processes() if argv == ["sleep", "600"]]
    notes = ["find", f"{host.home}/.ugro", "-name", "processes-*.json", "-delete"]
    host.run(notes)
    for pid, _ in job.processes(host):
        with contextlib.suppress(ProcessLookupError):
            host.kill(pid)
    assert job.wait_for("succeeded", "failed")["state"] == "failed"
    assert hidden not in [pid for pid, _ in host.processes()]


def test_what_may_be_of_a_job_is_named_and_left_alone(ugro: Ugro, boot: Boot) -> None:
    """Neither descends from the job, carries its token or is in its cgroup."""
    host = boot()
    linger(host)
    closed = f"{host.home}/closed"
    host.run(["cp", "/bin/sleep", closed])
    # A process with capabilities of its file may not be looked at.
    host.run(["setcap", "cap_net_raw+ep", closed])
    done = ugro.launch("exp1", f"--program {closed}", "--script", "hand_over.py")
    assert done.returncode == 0, done.stderr
    pids = {argv[-1]: pid for pid, argv in host.processes() if argv[-1][:2] == "60"}
    assert set(pids) == {"601", "602", "603"}
    suspects = ugro.job("exp1").state()["ranks"][1]["suspects"]
    assert suspects == [
        f"pid {pids['601']} (/usr/bin/sleep 601): it is in the job's folder",
        f"pid {pids['602']} ({closed} 602): it may not be looked at",
    ]
    assert "left alone: " + suspects[0] in ugro.run("status", "exp1").stdout
    health = ugro.run("health")
    assert health.returncode == 0, health.stdout


def test_what_a_rank_starts_as_root_is_named_and_its_node_is_not_free(
    ugro: Ugro, boot: Boot
) -> None:
    host = boot()
    rule = f"{host.user} ALL=(ALL) NOPASSWD: ALL"
    host.run(["sh", "-c", f"echo '{rule}' > /etc/sudoers.d/lab"])
    # It may still write.
    assert ugro.launch("exp1", "--seconds 1 --sudo").returncode == 14
    rank = ugro.job("exp1").state()["ranks"][1]
    deaf, *_ = [pid for pid, argv in host.processes() if DEAF in argv[-1]]
    assert deaf in rank["left_pids"]
    assert not rank["proven_gone"]
    kill = f"sudo kill -KILL {deaf}"
    assert f"would not end; where they are another user's: {kill}" in ugro.run("status", "exp1").stdout  # fmt: skip
    reset = ugro.run("reset", "--nodes", "lab1")
    assert reset.returncode == 9
    assert f"it is root's; end it there: {kill}" in reset.stderr
    refused = ugro.launch("exp2", "--seconds 0")
    assert refused.returncode == 6
    assert f"held by job {ugro.job('exp1').folder.name} (pid {deaf} there)" in refused.stderr  # fmt: skip
    assert f"end them on lab1: {kill}" in refused.stderr
    host.log_in(kill)
    assert ugro.launch("exp2", "--seconds 0").returncode == 0
