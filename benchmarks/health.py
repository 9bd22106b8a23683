"""`inv health` on three hosts, beside pdsh and parallel-ssh running one command that collects the same.

python -m benchmarks.health [ROUNDS]
"""

import os
import subprocess
import sys

from benchmarks.common import PYTHON, in_turn, lab_with_user, seconds, table

TORCH = "import importlib.metadata as m, platform; print(platform.python_version(), m.version('torch'))"


def main(rounds: int) -> None:
    with lab_with_user() as (lab, ugro):
        master = lab.hosts[0].address
        collect = (
            "hostname; getent hosts $(hostname); ip -o addr; python3 --version; cat /proc/sys/kernel/random/boot_id; "
            f'nproc; df -B1 ~ /dev/shm; command -v rsync; {PYTHON} -c "{TORCH}"; nvidia-smi; '
            "grep -l UGRO_TOKEN /proc/[0-9]*/environ; "
            f"timeout 4 bash -c '</dev/tcp/{master}/22' && echo reached; date +%s.%N"
        )
        addresses = [host.address for host in lab.hosts]
        environ = {**lab.environ, "PDSH_SSH_ARGS": f"-F {lab.ssh_config} %h"}

        def run(*argv: str) -> float:
            return seconds(
                lambda: subprocess.run(
                    argv, env=environ, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, timeout=60,
                )
            )  # fmt: skip

        def health() -> float:
            def probe() -> None:
                done = ugro.run("health")
                assert done.returncode == 0, done.stderr

            return seconds(probe)

        figures = in_turn(
            {
                "inv health": health,
                "pdsh": lambda: run("pdsh", "-R", "exec", "-w", ",".join(addresses),
                                    "ssh", "-F", str(lab.ssh_config), "%h", collect),
                "parallel-ssh": lambda: run("parallel-ssh", "-i", "-x", f"-F {lab.ssh_config}",
                                            *[w for a in addresses for w in ("-H", a)], collect),
            },
            rounds,
        )  # fmt: skip
        table(
            f"health of three hosts, whole command, {rounds} rounds, {os.cpu_count()} cores",
            figures,
            "inv health",
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
