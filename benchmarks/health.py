"""`inv health` beside pdsh, parallel-ssh, pyinfra and ansible, each running one command that collects the same.

Every run of every contender logs in anew: ansible's kept connections are switched off, its pipelining is on. All may
speak with all hosts at once.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.command import add_rounds, decimal, make_parser, run, whole
from benchmarks.common import (
    check,
    in_turn,
    lab_with_user,
    machine,
    on_each,
    seconds,
    table,
)
from benchmarks.peers import ANSIBLE, PARALLEL_SSH, PDSH, PYINFRA, PYTHON, find
from lab import Lab

TORCH = "import importlib.metadata as m, platform; print(platform.python_version(), m.version('torch'))"
ALL_AT_ONCE = "64"
PEERS = (PDSH, PARALLEL_SSH, PYINFRA, ANSIBLE)

Command = tuple[list[str | Path], dict[str, str]]
"""Its words and its environment."""


def collecting(master: str) -> str:
    """Write the line for a shell that finds out what the probe of UGRO does."""
    return (
        "hostname; getent hosts $(hostname); ip -o addr; python3 --version; cat /proc/sys/kernel/random/boot_id; "
        f'nproc; df -B1 ~ /dev/shm; command -v rsync; {PYTHON} -c "{TORCH}"; nvidia-smi; '
        "grep -l UGRO_TOKEN /proc/[0-9]*/environ; "
        f"timeout 4 bash -c '</dev/tcp/{master}/22' && echo reached; date +%s.%N"
    )


def by_pdsh(pdsh: Path, lab: Lab, collect: str) -> Command:
    """Write pdsh's command."""
    addresses = ",".join(host.address for host in lab.hosts)
    login = ["ssh", "-F", str(lab.ssh_config), "%h", collect]
    return [pdsh, "-R", "exec", "-f", ALL_AT_ONCE, "-w", addresses, *login], lab.environ


def by_parallel_ssh(parallel_ssh: Path, lab: Lab, collect: str) -> Command:
    """Write parallel-ssh's command."""
    hosts = [word for host in lab.hosts for word in ("-H", host.address)]
    return [
        parallel_ssh,
        "-i",
        "-p",
        ALL_AT_ONCE,
        "-x",
        f"-F {lab.ssh_config}",
        *hosts,
        collect,
    ], lab.environ


def by_pyinfra(pyinfra: Path, lab: Lab, collect: str) -> Command:
    """Write pyinfra's inventory and command."""
    data = {
        "ssh_user": "root",
        "ssh_key": str(lab.home / ".ssh/id_ed25519"),
        "ssh_known_hosts_file": str(lab.known_hosts),
    }
    inventory = lab.home / "inventory.py"
    inventory.write_text(f"hosts = {[(host.address, data) for host in lab.hosts]!r}\n")
    words = [
        "-y",
        "--parallel",
        ALL_AT_ONCE,
        str(inventory),
        "exec",
        "--",
        "sh",
        "-c",
        collect,
    ]
    return [pyinfra, *words], lab.environ


def by_ansible(ansible: Path, lab: Lab, collect: str) -> Command:
    """Write ansible's inventory and command."""
    inventory = lab.home / "inventory.ini"
    inventory.write_text(
        "".join(f"{host.address} ansible_user=root\n" for host in lab.hosts)
    )
    environ = {
        "ANSIBLE_SSH_ARGS": f"-F {lab.ssh_config} -o ControlMaster=no",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": ALL_AT_ONCE,
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
    }
    words = ["all", "-i", str(inventory), "-m", "shell", "-a", f"{collect}; true"]
    return [ansible, *words], lab.environ | environ


COMMANDS = {
    PDSH.name: by_pdsh,
    PARALLEL_SSH.name: by_parallel_ssh,
    PYINFRA.name: by_pyinfra,
    ANSIBLE.name: by_ansible,
}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("health", __doc__)
    made.add_argument("--hosts", type=whole(1, 200), default=3, help="of the lab")
    made.add_argument(
        "--delay",
        dest="delay_ms",
        metavar="MS",
        type=decimal(0, 10_000),
        default=0,
        help="milliseconds by which each packet comes later, on its way to a host and back",
    )
    add_rounds(made)
    return made


def main(hosts: int, delay_ms: float, rounds: int) -> None:
    programs = find(*PEERS)
    with lab_with_user(hosts=hosts) as (lab, ugro):

        def health() -> None:
            done = ugro.run("health")
            check(["inv", "health"], done.returncode, done.stdout + done.stderr)

        for host in lab.hosts:
            if delay_ms:
                host.slow(delay_ms=delay_ms)
        collect = collecting(lab.hosts[0].address)
        measures = {"inv health": partial(seconds, health)}
        for name, program in programs.items():
            argv, environ = COMMANDS[name](program, lab, collect)
            # The last commands of the line fail or not as it comes; what counts is that it ran everywhere.
            measures[name] = partial(seconds, partial(on_each, lab, argv, environ))
        figures = in_turn(measures, rounds)
    title = f"health of {hosts} hosts, {delay_ms:g} ms of delay, whole command, {rounds} rounds, {machine()}"
    missing = [peer.name for peer in PEERS if peer.name not in programs]
    table(title, figures, "inv health", not_installed=missing)


if __name__ == "__main__":
    run(parser(), main)
