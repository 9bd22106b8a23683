"""The lab is what the other tests take for real hosts: here is what they rely on."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.lab import Lab, LabError, LabHost
from tests.lab.lab import ROOT
from tests.lab.registry import STATE, status
from tests.lab.tools import missing_packages, wait_until


def answers(host: LabHost, seconds: float = 1) -> bool:
    """Whether a new connection to the host's sshd gets its banner."""
    probe = ["ssh-keyscan", "-T", str(max(1, round(seconds))), "-t", "ed25519", host.address]
    return bool(subprocess.run(probe, capture_output=True, check=False).stdout)


def round_trip_seconds(host: LabHost) -> float:
    begin = time.monotonic()
    answers(host, 5)
    return time.monotonic() - begin


def test_each_host_has_its_own_name_and_address_over_ssh(hosts: list[LabHost]) -> None:
    for host in hosts:
        said = host.ssh(["sh", "-c", "uname -n; ip -4 -o addr show scope global"]).stdout.split()
        assert said[0] == host.name
        assert host.interface in said
        assert f"{host.address}/24" in said


def test_hosts_reach_each_other(hosts: list[LabHost]) -> None:
    connect = "import socket, sys; print(socket.create_connection((sys.argv[1], 22), 5).recv(4))"
    for host in hosts:
        for other in hosts:
            assert host.run([sys.executable, "-c", connect, other.address]).stdout == "b'SSH-'\n"


def test_host_names_do_not_resolve(hosts: list[LabHost]) -> None:
    assert hosts[0].run(["getent", "hosts", "lab1"], check=False).returncode == 2


def test_an_unknown_host_key_is_refused_by_openssh(lab: Lab, hosts: list[LabHost]) -> None:
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
    assert "sleep" not in second.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout.split("cat")[0]
    first.kill(pid)
    wait_until(lambda: first.processes() == [], "the sleeper to end")


def test_processes_are_found_by_a_token_in_their_environment(hosts: list[LabHost]) -> None:
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
        assert second.run(["test", "-e", f"{folder}/lab_test_file"], check=False).returncode == 1
    finally:
        first.run(["rm", f"{folder}/lab_test_file"])


def test_the_controller_reads_a_hosts_home(hosts: list[LabHost]) -> None:
    hosts[1].run(["sh", "-c", "head -c 100000 /dev/urandom > ~/lab_test_file"])
    there = hosts[1].run(["sha256sum", "lab_test_file"]).stdout.split()[0]
    here = hashlib.sha256(hosts[1].path("lab_test_file").read_bytes()).hexdigest()
    hosts[1].path("lab_test_file").unlink()
    assert here == there


def test_repository_and_shared_folders_are_there(hosts: list[LabHost], tmp_path: Path) -> None:
    (tmp_path / "made_after_up").touch()
    hosts[0].run(["test", "-e", str(tmp_path / "made_after_up")])
    hosts[0].run(["test", "-e", str(ROOT / "tests" / "lab" / "init.py")])
    hosts[0].run([sys.executable, "-c", "import yaml"])


def test_a_host_has_nothing_of_the_controllers_in_ssh_and_ugro(hosts: list[LabHost]) -> None:
    assert [path.name for path in hosts[0].path(".ssh").iterdir()] == ["authorized_keys"]
    # What UGRO keeps on a node may have come there by other tests.
    own = {"torch.json", "cuda_available.json", "lease-node.json"}
    assert {path.name for path in hosts[2].path(".ugro").iterdir()} <= own


def test_a_cut_link_answers_nothing_until_it_is_mended(hosts: list[LabHost]) -> None:
    hosts[0].cut()
    assert not answers(hosts[0])
    assert answers(hosts[1])
    hosts[0].mend()
    assert answers(hosts[0])


def test_a_connection_outlives_a_cut(lab: Lab, hosts: list[LabHost]) -> None:
    ssh = ["ssh", "-F", str(lab.ssh_config), hosts[0].address, "cat"]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as echo:
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
    quick = round_trip_seconds(hosts[0])
    hosts[0].slow(delay_ms=100)
    late = round_trip_seconds(hosts[0])
    hosts[0].fast()
    # At the least: connect, banner, key exchange; each a round trip of two delays.
    assert late > 0.6
    assert quick < 0.6
    assert round_trip_seconds(hosts[0]) < 0.6


def test_bulk_data_survives_a_lossy_link(hosts: list[LabHost]) -> None:
    hosts[0].slow(delay_ms=1, loss_percent=1)
    done = hosts[0].ssh(["head", "-c", "2000000", "/dev/zero"])
    hosts[0].fast()
    assert len(done.stdout) == 2_000_000


def test_a_firewalled_port_is_silent_and_the_others_are_not(hosts: list[LabHost]) -> None:
    hosts[0].firewall(29500)
    assert answers(hosts[0])
    hosts[0].firewall(22)
    assert not answers(hosts[0])
    hosts[0].unfirewall(22)
    assert answers(hosts[0])


def test_without_sshd_a_host_refuses_and_its_sessions_go_on(lab: Lab, hosts: list[LabHost]) -> None:
    ssh = ["ssh", "-F", str(lab.ssh_config), hosts[0].address, "cat"]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as echo:
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
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in hosts[0].ssh(["true"], check=False).stderr
    lab.trust()
    hosts[0].ssh(["true"])


def smi(host: LabHost, *arguments: str) -> tuple[int, str]:
    done = host.run(["nvidia-smi", *arguments], check=False)
    return done.returncode, done.stdout


def test_the_stand_in_is_on_the_path_of_a_login(hosts: list[LabHost]) -> None:
    assert hosts[0].ssh(["nvidia-smi", "-L"], check=False).returncode == 127
    hosts[0].nvidia_smi("rtx4070")
    assert hosts[0].ssh(["nvidia-smi", "-L"]).stdout.startswith("GPU 0: NVIDIA GeForce RTX 4070")


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
    assert smi(hosts[0], apps, "--format=csv,noheader,nounits") == (0, "4127, /usr/bin/blender, 6130\n")


def test_the_stand_in_fails_as_the_real_one(hosts: list[LabHost]) -> None:
    hosts[0].nvidia_smi("rtx3070ti")
    assert smi(hosts[0], "--query-gpu=name,no.field", "--format=csv") == (
        2,
        'Field "no.field" is not a valid field to query.\n\n',
    )
    hosts[0].nvidia_smi("fallen_off_bus")
    code, said = smi(hosts[0], "--query-gpu=name", "--format=csv")
    assert code == 6
    assert said.startswith("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error")


def test_the_cluster_file_names_the_hosts(lab: Lab) -> None:
    document = yaml.safe_load(lab.cluster_file.read_text("utf-8"))
    nodes = [document["cluster"]["master"], *document["workers"]]
    assert [node["ip"] for node in nodes] == [host.address for host in lab.hosts]


def test_two_labs_stand_side_by_side_and_go_without_a_trace(lab: Lab, tmp_path: Path) -> None:
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
def test_down_after_kill_9_of_up_leaves_nothing(lab: Lab, tmp_path: Path, delay_seconds: float) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.lab"]
    creator = subprocess.Popen([*command, "up", "--folder", str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until((folder / STATE).exists, "the lab to be begun")
    time.sleep(delay_seconds - 0.1)  # somewhere in the middle of it
    creator.kill()
    creator.wait()
    number = status(folder).number
    subprocess.run([*command, "down", "--folder", str(folder)], cwd=ROOT, check=True)
    assert status(folder).processes == []
    assert status(folder).number is None
    assert not folder.exists()
    assert not Path(f"/sys/class/net/ulab{number}").exists()


def test_the_hosts_of_a_fixture_die_with_pytest(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "owned"
    code = (
        "import sys, time, pathlib, tests.lab\n"
        "lab = tests.lab.Lab.up(pathlib.Path(sys.argv[1]), hosts=1, owned=True)\n"
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
    assert not folder.exists()


def test_nothing_is_missing_here() -> None:
    assert missing_packages() == []
    assert os.geteuid() == 0
