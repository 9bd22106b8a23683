"""Makes failures/*.json anew: what real torchrun leaves behind when one rank of two fails and pulls the other down.

    python tests/unit/recordings/record_failures.py PYTHON_WITH_TORCH

Run by hand after a new torch; the recordings are committed. Paths of this machine are replaced.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FAILURES = {
    "record": (1, "raise ValueError('the loss is nan\\nat step 7')"),
    "plain": (1, "raise ValueError('the loss is nan')"),
    "plain_master": (0, "raise ValueError('the loss is nan')"),
    "exit_2": (1, "sys.exit(2)"),
    "sigkill": (1, "os.kill(os.getpid(), signal.SIGKILL)"),
    "sigsegv": (1, "ctypes.string_at(0)"),
    "quiet_exit_0": (1, "os._exit(0)"),
}
SCRIPT = """
import ctypes, os, signal, sys
import torch, torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

def main():
    dist.init_process_group("gloo")
    print(f"epoch 1 on rank {{dist.get_rank()}}", flush=True)
    dist.barrier()
    if dist.get_rank() == {rank}:
        {failure}
    for _ in range(100):
        dist.all_reduce(torch.ones(1000))

{main}()
"""


def main(python: str) -> None:
    for name, (rank, failure) in FAILURES.items():
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "train.py")
            called = "record(main)" if name == "record" else "main"
            script.write_text(SCRIPT.format(rank=rank, failure=failure, main=called))
            ranks = run(python, script)
        target = Path(__file__).parent / "failures" / f"{name}.json"
        target.write_text(
            json.dumps({"failed_rank": rank, "ranks": ranks}, indent=1) + "\n"
        )
        print(name, [one["code"] for one in ranks], flush=True)


def run(python: str, script: Path) -> list[dict[str, object]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = script.parent
    ranks = []
    for rank in range(2):
        argv = [
            python,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--node-rank",
            str(rank),
        ]
        argv += [
            "--nproc-per-node",
            "1",
            "--master-addr",
            "127.0.0.1",
            "--master-port",
            str(port),
        ]
        argv += [
            "--local-addr",
            "127.0.0.1",
            "--max-restarts",
            "0",
            "--log-dir",
            f"{folder}/torchrun{rank}",
        ]
        env = dict(
            os.environ,
            GLOO_SOCKET_IFNAME="lo",
            PYTHONUNBUFFERED="1",
            OMP_NUM_THREADS="1",
        )
        env["TORCHELASTIC_ERROR_FILE"] = f"{folder}/error{rank}.json"
        with Path(folder, f"log{rank}").open("wb") as log:
            ranks.append(
                subprocess.Popen([*argv, str(script)], stdout=log, stderr=log, env=env)
            )
    codes = [one.wait(timeout=120) for one in ranks]
    prefix = str(Path(python).parents[1])

    def read(name: str) -> str | None:
        path = folder / name
        if not path.exists():
            return None
        text = path.read_text(errors="replace")
        text = text.replace(prefix, "/home/ada/ugro/.venv").replace(
            str(folder), "/home/ada/ugro/jobs/exp1"
        )
        return re.sub(re.escape(socket.gethostname()), "node", text)

    return [
        {
            "rank": rank,
            "code": code,
            "log": read(f"log{rank}"),
            "error": read(f"error{rank}.json"),
        }
        for rank, code in enumerate(codes)
    ]


if __name__ == "__main__":
    main(sys.argv[1])
