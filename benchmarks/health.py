"""`inv health` beside pdsh, parallel-ssh, pyinfra and ansible, each running one command that collects the same.

    python -m benchmarks.health [--hosts 3] [--delay 0] [--rounds 5]

`--delay` is in milliseconds and is added to each packet on its way to a host and back. Every run of every contender
logs in anew: ansible's kept connections are switched off, its pipelining is on. All may speak with all hosts at once.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.common import PYTHON, in_turn, lab_with_user, machine, peer, quietly, seconds, table
from tests.lab import Lab

TORCH = "import importlib.metadata as m, platform; print(platform.python_version(), m.version('torch'))"
ALL_AT_ONCE = "64"


def collecting(master: str) -> str:
    """One line for a shell that finds out what the probe of UGRO does."""
    return (
        "hostname; getent hosts $(hostname); ip -o addr; python3 --version; cat /proc/sys/kernel/random/boot_id; "
        f'nproc; df -B1 ~ /dev/shm; command -v rsync; {PYTHON} -c "{TORCH}"; nvidia-smi; '
        "grep -l UGRO_TOKEN /proc/[0-9]*/environ; "
        f"timeout 4 bash -c '</dev/tcp/{master}/22' && echo reached; date +%s.%N"
    )


def contenders(lab: Lab, folder: Path) -> dict[str, tuple[list[str | Path], dict[str, str]]]:
    """{peer: (argv, environment)}."""
    collect = collecting(lab.hosts[0].address)
    addresses = [host.address for host in lab.hosts]
    config, key, known = str(lab.ssh_config), lab.home / ".ssh/id_ed25519", lab.known_hosts
    found: dict[str, tuple[list[str | Path], dict[str, str]]] = {
        "pdsh": (
            ["pdsh", "-R", "exec", "-f", ALL_AT_ONCE, "-w", ",".join(addresses), "ssh", "-F", config, "%h", collect],
            lab.environ,
        ),
        "parallel-ssh": (
            ["parallel-ssh", "-i", "-p", ALL_AT_ONCE, "-x", f"-F {config}",
             *[word for address in addresses for word in ("-H", address)], collect],
            lab.environ,
        ),
    }  # fmt: skip
    if programs := peer("pyinfra", "pyinfra"):
        inventory = folder / "inventory.py"
        data = {"ssh_user": "root", "ssh_key": str(key), "ssh_known_hosts_file": str(known)}
        inventory.write_text(f"hosts = {[(address, data) for address in addresses]!r}\n")
        words = ["-y", "--parallel", ALL_AT_ONCE, str(inventory), "exec", "--", "sh", "-c", collect]
        found["pyinfra"] = [programs / "pyinfra", *words], lab.environ
    if programs := peer("ansible", "ansible-core"):
        inventory = folder / "inventory.ini"
        inventory.write_text("\n".join(f"{address} ansible_user=root" for address in addresses) + "\n")
        environ = {
            "ANSIBLE_SSH_ARGS": f"-F {config} -o ControlMaster=no",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORKS": ALL_AT_ONCE,
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        }
        words = ["all", "-i", str(inventory), "-m", "shell", "-a", f"{collect}; true"]
        found["ansible"] = [programs / "ansible", *words], lab.environ | environ
    return found


def main(hosts: int, delay_ms: float, rounds: int) -> None:
    with lab_with_user(hosts=hosts) as (lab, ugro):

        def health() -> None:
            done = ugro.run("health")
            assert done.returncode == 0, done.stderr

        for host in lab.hosts:
            if delay_ms:
                host.slow(delay_ms=delay_ms)
        measures = {"inv health": partial(seconds, health)}
        for name, (argv, environ) in contenders(lab, ugro.folder).items():
            # The last commands of the line fail or not as it comes; what counts is that it ran everywhere.
            measures[name] = partial(seconds, partial(quietly, argv, environ, None))
        figures = in_turn(measures, rounds)
        title = (
            f"health of {hosts} hosts, {delay_ms:g} ms of delay, whole command, {rounds} rounds, {machine()}"
        )
        table(title, figures, "inv health")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    main(options.hosts, options.delay, options.rounds)
