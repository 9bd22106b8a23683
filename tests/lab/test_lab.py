"""The lab is what the other tests take for real hosts: here is what they rely on."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from lab import Lab, LabError, LabHost
from lab.host import KILL_ALL, OUTSIDE, VOLATILE
from lab.lab import ROOT
from lab.proof import is_of_lab, outside, send_signal
from lab.registry import STATE, labs, status
from lab.tools import lab_token, missing_packages, wait_until


def answers(host: LabHost, seconds: int = 30) -> bool:
    """Tell whether a new connection to the host's sshd gets its banner; True as soon as it does."""
    probe = ["ssh-keyscan", "-T", str(seconds), "-t", "ed25519", host.address]
    return bool(subprocess.run(probe, capture_output=True, check=False).stdout)


def is_silent(host: LabHost) -> bool:
    """Tell whether nothing answers for a second."""
    return not answers(host, 1)


def round_trip_seconds(host: LabHost) -> float:
    begin = time.monotonic()
    assert answers(host)
    return time.monotonic() - begin


def test_each_host_has_its_own_name_and_address_over_ssh(hosts: list[LabHost]) -> None:
    for host in hosts:
        said = host.ssh(
            ["sh", "-c", "uname -n; ip -4 -o addr show scope global"]
        ).stdout.split()
        assert said[0] == host.name
        assert host.interface in said
        assert f"{host.address}/24" in said


def test_hosts_reach_each_other(hosts: list[LabHost]) -> None:
    connect = "import socket, sys; print(socket.create_connection((sys.argv[1], 22), 5).recv(4))"
    for host in hosts:
        for other in hosts:
            assert (
                host.run([sys.executable, "-c", connect, other.address]).stdout
                == "b'SSH-'\n"
            )


def test_host_names_do_not_resolve(hosts: list[LabHost]) -> None:
    assert hosts[0].run(["getent", "hosts", "lab1"], check=False).returncode == 2


def test_an_unknown_host_key_is_refused_by_openssh(
    lab: Lab, hosts: list[LabHost]
) -> None:
    lab.known_hosts.write_text("")
    done = hosts[0].ssh(["true"], check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_a_host_sees_its_own_processes_only(hosts: list[LabHost]) -> None:
    first, second, _ = hosts
    sleeper = first.ssh(["sh", "-c", "sleep 60 >/dev/null 2>&1 </dev/null & echo $!"])
    pid = int(sleeper.stdout)
    assert (pid, ["sleep", "60"]) in first.processes()
    assert second.processes() == []
    assert (
        "sleep"
        not in second.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout.split("cat")[
            0
        ]
    )
    first.kill(pid)
    wait_until(lambda: first.processes() == [], "the sleeper to end")


def test_processes_are_found_by_a_token_in_their_environment(
    hosts: list[LabHost],
) -> None:
    host = hosts[0]
    start = "UGRO_JOB_ID=some_job sleep 60 >/dev/null 2>&1 </dev/null & sleep 61 >/dev/null 2>&1 & echo $!"
    host.run(["sh", "-c", start])
    found = host.processes(token=b"UGRO_JOB_ID=some_job")
    assert [argv for _, argv in found] == [["sleep", "60"]]
    host.kill_all()
    host.start_sshd()


def test_orphans_are_reaped(hosts: list[LabHost]) -> None:
    hosts[0].run(["sh", "-c", "(sleep 0.05 &) ; true"])
    states = ["sh", "-c", "cat /proc/[0-9]*/stat | cut -d' ' -f3 | sort -u"]
    wait_until(lambda: hosts[0].processes() == [], "the orphan to end")
    assert "Z" not in hosts[0].run(states).stdout


@pytest.mark.parametrize("place", ["~", "/tmp", "/dev/shm", "/run"])
def test_what_a_host_writes_is_its_own(hosts: list[LabHost], place: str) -> None:
    first, second, _ = hosts
    folder = place.replace("~", first.home)
    first.run(["sh", "-c", f"echo lab0 > {folder}/lab_test_file"])
    try:
        assert not Path(folder, "lab_test_file").exists()
        assert (
            second.run(
                ["test", "-e", f"{folder}/lab_test_file"], check=False
            ).returncode
            == 1
        )
    finally:
        first.run(["rm", f"{folder}/lab_test_file"])


def test_the_controller_reads_a_hosts_home(hosts: list[LabHost]) -> None:
    hosts[1].run(["sh", "-c", "head -c 100000 /dev/urandom > ~/lab_test_file"])
    there = hosts[1].run(["sha256sum", "lab_test_file"]).stdout.split()[0]
    here = hashlib.sha256(hosts[1].path("lab_test_file").read_bytes()).hexdigest()
    hosts[1].path("lab_test_file").unlink()
    assert here == there


def test_repository_and_shared_folders_are_there(
    hosts: list[LabHost], tmp_path: Path
) -> None:
    (tmp_path / "made_after_up").touch()
    hosts[0].run(["test", "-e", str(tmp_path / "made_after_up")])
    hosts[0].run(["test", "-e", str(ROOT / "lab" / "init.py")])
    hosts[0].run([sys.executable, "-c", "import yaml"])


def test_a_host_has_nothing_of_the_controllers_in_ssh_and_ugro(
    hosts: list[LabHost],
) -> None:
    assert [path.name for path in hosts[0].path(".ssh").iterdir()] == [
        "authorized_keys"
    ]
    # What UGRO keeps on a node may have come there by other tests.
    own = {"on-lab2"}
    assert {path.name for path in hosts[2].path(".ugro").iterdir()} <= own


def test_a_cut_link_answers_nothing_until_it_is_mended(hosts: list[LabHost]) -> None:
    hosts[0].cut()
    assert is_silent(hosts[0])
    assert answers(hosts[1])
    hosts[0].mend()
    assert answers(hosts[0])


def test_a_connection_outlives_a_cut(lab: Lab, hosts: list[LabHost]) -> None:
    ssh = ["ssh", "-F", str(lab.ssh_config), hosts[0].address, "cat"]
    with subprocess.Popen(
        ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        print("before", file=echo.stdin, flush=True)
        assert echo.stdout.readline() == "before\n"
        hosts[0].cut()
        print("during", file=echo.stdin, flush=True)
        time.sleep(0.3)  # the cut itself is what is tested
        hosts[0].mend()
        assert echo.stdout.readline() == "during\n"


def test_a_slow_link_is_late_by_what_was_asked(hosts: list[LabHost]) -> None:
    def is_quick() -> bool:
        return round_trip_seconds(hosts[0]) < 0.6

    wait_until(is_quick, "a quick answer")
    hosts[0].slow(delay_ms=100)
    # At the least: connect, banner, key exchange; each a round trip of two delays.
    assert [is_quick() for _ in range(3)] == [False] * 3
    hosts[0].fast()
    wait_until(is_quick, "a quick answer again")


def test_bulk_data_survives_a_lossy_link(hosts: list[LabHost]) -> None:
    hosts[0].slow(delay_ms=1, loss_percent=1)
    done = hosts[0].ssh(["head", "-c", "2000000", "/dev/zero"])
    hosts[0].fast()
    assert len(done.stdout) == 2_000_000


def test_a_firewalled_port_is_silent_and_the_others_are_not(
    hosts: list[LabHost],
) -> None:
    hosts[0].firewall(29500)
    assert answers(hosts[0])
    hosts[0].firewall(22)
    assert is_silent(hosts[0])
    hosts[0].unfirewall(22)
    assert answers(hosts[0])


def test_without_sshd_a_host_refuses_and_its_sessions_go_on(
    lab: Lab, hosts: list[LabHost]
) -> None:
    ssh = ["ssh", "-F", str(lab.ssh_config), hosts[0].address, "cat"]
    with subprocess.Popen(
        ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        print("one", file=echo.stdin, flush=True)
        assert echo.stdout.readline() == "one\n"
        hosts[0].stop_sshd()
        assert "Connection refused" in hosts[0].ssh(["true"], check=False).stderr
        print("two", file=echo.stdin, flush=True)
        assert echo.stdout.readline() == "two\n"
    hosts[0].start_sshd()
    assert answers(hosts[0])


def test_a_reboot_ends_all_and_has_a_new_boot_id(hosts: list[LabHost]) -> None:
    boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
    before = hosts[0].ssh(boot_id).stdout
    assert before != hosts[1].ssh(boot_id).stdout
    hosts[0].run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & touch ~/kept /tmp/lost"])
    hosts[0].reboot()
    assert hosts[0].processes() == []
    assert hosts[0].ssh(boot_id).stdout not in ("", before)
    assert hosts[0].path("kept").exists()
    assert hosts[0].run(["test", "-e", "/tmp/lost"], check=False).returncode == 1
    hosts[0].path("kept").unlink()


def test_a_new_host_key_is_noticed(lab: Lab, hosts: list[LabHost]) -> None:
    hosts[0].new_host_key()
    assert (
        "REMOTE HOST IDENTIFICATION HAS CHANGED"
        in hosts[0].ssh(["true"], check=False).stderr
    )
    lab.trust()
    hosts[0].ssh(["true"])


# ---- nothing is ended or deleted that is not the host's own ----


@pytest.fixture
def spare(lab: Lab, tmp_path: Path) -> Iterator[LabHost]:
    """A host of a lab that a test may spoil."""
    with Lab.up(tmp_path / "spare", hosts=1) as made:
        yield made.hosts[0]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("place", VOLATILE)
def test_a_host_whose_tmp_is_this_machines_is_not_emptied(
    spare: LabHost, place: str
) -> None:
    with tempfile.NamedTemporaryFile(dir=place) as ours:
        spare.run(["umount", "--lazy", place])
        assert spare.run(["test", "-e", ours.name], check=False).returncode == 0
        spare.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 &"])
        for empty in (
            spare.reboot,
            partial(spare.empty, place),
            partial(spare.empty, place, "-type", "f"),
        ):
            with pytest.raises(
                LabError,
                match=f"{place} of .* not what the lab mounted there: nothing was done",
            ):
                empty()
        assert Path(ours.name).exists()
    assert [argv for _, argv in spare.processes()] == [["sleep", "60"]]


def test_another_mount_of_a_host_is_not_emptied_either(spare: LabHost) -> None:
    spare.run(["mount", "-t", "tmpfs", "lab", "/tmp"])
    spare.run(["touch", "/tmp/kept"])
    with pytest.raises(LabError, match="not what the lab mounted"):
        spare.reboot()
    spare.run(["test", "-e", "/tmp/kept"])


def test_without_a_home_of_its_own_a_hosts_files_are_not_to_be_had(
    spare: LabHost,
) -> None:
    spare.run(["umount", "--lazy", spare.home])
    with pytest.raises(LabError, match="not what the lab mounted"):
        spare.path("lab_test_file")
    with pytest.raises(LabError, match="not what the lab mounted"):
        spare.remove("lab_test_file")


def test_what_the_hosts_share_with_this_machine_is_not_removed(
    hosts: list[LabHost], tmp_path: Path
) -> None:
    (tmp_path / "ours").touch()
    for path in (
        tmp_path,
        tmp_path / "ours",
        tmp_path.parents[2],
        ROOT,
        ROOT / "tests",
        Path("/"),
    ):
        with pytest.raises(LabError, match="shared with this machine"):
            hosts[0].remove(path)
    assert (tmp_path / "ours").exists()


def test_a_folder_of_a_hosts_home_is_removed(hosts: list[LabHost]) -> None:
    hosts[0].run(["mkdir", "-p", "lab_test_folder/deep"])
    hosts[0].remove("lab_test_folder")
    assert not hosts[0].path("lab_test_folder").exists()
    hosts[0].remove("lab_test_folder")


ACTS: dict[str, Callable[[LabHost], object]] = {
    "run": lambda host: host.run(["true"]),
    "kill": lambda host: host.kill(host.pid),
    "kill all": LabHost.kill_all,
    "reboot": LabHost.reboot,
    "start sshd": LabHost.start_sshd,
    "stop sshd": LabHost.stop_sshd,
    "path": lambda host: host.path(".ssh"),
    "remove": lambda host: host.remove("lab_test_file"),
    "unfirewall": LabHost.unfirewall,
    "stand-in": lambda host: host.nvidia_smi(None),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("of_the_lab", [False, True])
def test_a_pid_that_came_to_be_another_process_is_left_alone(
    hosts: list[LabHost], act: Callable[[LabHost], object], of_the_lab: bool
) -> None:
    """It is a process of this machine, or one of the lab's that is no host."""
    environ = lab_token(hosts[0].ssh_config.parents[2]) if of_the_lab else {}
    with subprocess.Popen(["sleep", "600"], env=os.environ | environ) as stranger:
        try:
            wrong = replace(hosts[0], pid=stranger.pid, switch_pid=stranger.pid)
            with pytest.raises(LabError, match="nothing was done"):
                act(wrong)
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("act", [LabHost.cut, LabHost.mend, LabHost.fast, LabHost.slow])
def test_this_machines_own_network_is_no_switch(
    hosts: list[LabHost],
    stranger: subprocess.Popen[bytes],
    act: Callable[[LabHost], object],
) -> None:
    with pytest.raises(LabError, match="does not belong to the lab"):
        act(replace(hosts[0], switch_pid=stranger.pid))


def test_a_dead_host_is_no_host(spare: LabHost) -> None:
    os.kill(spare.pid, signal.SIGKILL)
    wait_until(
        lambda: not is_of_lab(spare.pid, spare.ssh_config.parents[2]), "the host to die"
    )
    for act in (spare.processes, spare.kill_all, spare.reboot, spare.start_sshd):
        with pytest.raises(LabError, match="nothing was done"):
            act()


def test_all_are_killed_only_within_the_namespace_that_is_meant() -> None:
    """Tried in one that has nothing but two sleepers and the shells around them."""
    script = (
        "sleep 60 & first=$!; sleep 60 & second=$!; "
        'sh -c "$0" sh $(( $(stat -Lc %i /proc/self/ns/pid) + $1 )); echo $?; '
        "kill -TERM $first $second; wait $first; echo $?; wait $second; echo $?"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]

    def tried(off_by: int) -> list[int]:
        argv = [*unshare, "sh", "-c", script, KILL_ALL, str(off_by)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return [int(code) for code in done.stdout.split()]

    # Who lives on ends by the polite signal.
    by_term, by_kill = 128 + signal.SIGTERM, 128 + signal.SIGKILL
    assert tried(off_by=1) == [OUTSIDE, by_term, by_term]
    assert tried(off_by=0) == [0, by_kill, by_kill]


@pytest.mark.parametrize("missing", [["--pid", "--fork"], ["--net"]])
def test_process_1_of_a_host_mounts_nothing_outside_of_its_own_namespaces(
    missing: list[str],
) -> None:
    """Whatever becomes of it is seen by a namespace of mounts that is this test's alone."""
    others = [
        flag
        for flag in ("--pid", "--fork", "--net", "--uts", "--ipc")
        if flag not in missing
    ]
    config = json.dumps({"outside": outside()})
    argv = [
        "unshare",
        "--mount",
        *others,
        sys.executable,
        "-I",
        str(ROOT / "lab/init.py"),
        config,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "namespace of its own" in done.stderr
    assert "nothing was mounted" in done.stderr


def test_a_lab_folder_with_a_mount_in_it_is_not_removed(
    lab: Lab, tmp_path: Path
) -> None:
    made = Lab.up(tmp_path / "second", hosts=1)
    place = made.folder / "my disk"
    place.mkdir()
    with ExitStack() as undo:
        undo.callback(made.down)
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        undo.callback(lambda: subprocess.run(["umount", place], check=True))
        (place / "thesis.tex").touch()
        with pytest.raises(LabError, match="my disk is a mount in the lab's folder"):
            made.down()
        assert (place / "thesis.tex").exists()
    assert not made.folder.exists()


def test_a_signal_goes_only_to_the_process_that_is_meant(
    stranger: subprocess.Popen[bytes],
) -> None:
    assert not send_signal(stranger.pid, signal.SIGKILL, lambda _: False)
    assert stranger.poll() is None
    assert send_signal(stranger.pid, signal.SIGKILL, lambda pid: pid == stranger.pid)
    assert stranger.wait() == -signal.SIGKILL
    assert not send_signal(stranger.pid, signal.SIGKILL, lambda _: True)


# ---- the stand-in for nvidia-smi ----


def smi(host: LabHost, *arguments: str) -> tuple[int, str]:
    done = host.run(["nvidia-smi", *arguments], check=False)
    return done.returncode, done.stdout


def test_the_stand_in_is_on_the_path_of_a_login(hosts: list[LabHost]) -> None:
    assert hosts[0].ssh(["nvidia-smi", "-L"], check=False).returncode == 127
    hosts[0].nvidia_smi("rtx4070")
    assert (
        hosts[0]
        .ssh(["nvidia-smi", "-L"])
        .stdout.startswith("GPU 0: NVIDIA GeForce RTX 4070")
    )


def test_the_stand_in_replays_its_recording(hosts: list[LabHost]) -> None:
    hosts[0].nvidia_smi("rtx4070")
    query = "--query-gpu=name,memory.total,power.limit,temperature.gpu"
    assert smi(hosts[0], query, "--format=csv,noheader,nounits") == (
        0,
        "NVIDIA GeForce RTX 4070 Laptop GPU, 8188, [N/A], 43\n",
    )
    assert smi(hosts[0], query, "--format=csv") == (
        0,
        "name, memory.total [MiB], power.limit [W], temperature.gpu\n"
        "NVIDIA GeForce RTX 4070 Laptop GPU, 8188 MiB, [N/A], 43\n",
    )
    hosts[0].nvidia_smi("vram_held")
    apps = "--query-compute-apps=pid,process_name,used_memory"
    assert smi(hosts[0], apps, "--format=csv,noheader,nounits") == (
        0,
        "4127, /usr/bin/blender, 6130\n",
    )


def test_the_stand_in_fails_as_the_real_one(hosts: list[LabHost]) -> None:
    hosts[0].nvidia_smi("rtx3070ti")
    assert smi(hosts[0], "--query-gpu=name,no.field", "--format=csv") == (
        2,
        'Field "no.field" is not a valid field to query.\n\n',
    )
    hosts[0].nvidia_smi("fallen_off_bus")
    code, said = smi(hosts[0], "--query-gpu=name", "--format=csv")
    assert code == 6
    assert said.startswith(
        "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error"
    )


def test_the_cluster_file_names_the_hosts(lab: Lab) -> None:
    document = yaml.safe_load(lab.cluster_file.read_text("utf-8"))
    nodes = [document["cluster"]["master"], *document["workers"]]
    assert [node["ip"] for node in nodes] == [host.address for host in lab.hosts]


def test_two_labs_stand_side_by_side_and_go_without_a_trace(
    lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "second"
    with Lab.up(folder, hosts=1, gpus=True) as second:
        second.trust()
        assert second.subnet != lab.subnet
        assert second.hosts[0].ssh(["hostname"]).stdout == "lab0\n"
        assert Lab.attach(folder).hosts == second.hosts
        with pytest.raises(LabError, match="a lab is up in"):
            Lab.up(folder)
        interface = f"ulab{second.number}"
    assert not folder.exists()
    assert status(folder).processes == []
    assert not Path("/sys/class/net", interface).exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert lab.hosts[0].listens()


def test_a_folder_that_is_no_labs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LabError, match="is not empty"):
        Lab.up(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("delay_seconds", [0.1, 0.2, 0.3])
def test_down_after_kill_9_of_up_leaves_nothing(
    lab: Lab, tmp_path: Path, delay_seconds: float
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "lab"]
    creator = subprocess.Popen(
        [*command, "up", "--folder", str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    wait_until((folder / STATE).exists, "the lab to be begun")
    time.sleep(delay_seconds - 0.1)  # somewhere in the middle of it
    creator.kill()
    creator.wait()
    number = status(folder).number
    done = subprocess.run(
        [*command, "down", "--folder", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    # Whoever brings up another lab in the meantime takes a dead one away, too.
    assert done.returncode == 0 or "no lab in" in done.stderr, done.stderr
    assert status(folder).processes == []
    assert status(folder).number is None
    # Perhaps another lab of this moment removes it.
    wait_until(lambda: not folder.exists(), "the folder to go")
    bridge_is_there = Path(f"/sys/class/net/ulab{number}").exists()
    # Another lab may have been given the number at once.
    assert not bridge_is_there or number in {other.number for other in labs()}


def test_the_hosts_of_a_fixture_die_with_pytest(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "owned"
    code = (
        "import sys, time, pathlib, lab\n"
        "lab = lab.Lab.up(pathlib.Path(sys.argv[1]), hosts=1, owned=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as creator:
        assert creator.stdout is not None
        assert creator.stdout.readline() == b"up\n"
        creator.send_signal(signal.SIGKILL)
    wait_until(lambda: not status(folder).processes, "the hosts to die")
    Lab.up(tmp_path / "next", hosts=1).down()
    # Perhaps another lab of this moment removes it.
    wait_until(lambda: not folder.exists(), "the folder to go")


def test_nothing_is_missing_here() -> None:
    assert missing_packages() == []
    assert os.geteuid() == 0
