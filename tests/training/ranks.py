"""Ranks for tests: processes that have the slow imports behind them.

torch, transformers and peft take ten seconds to import; a test that runs the script a dozen times would wait for little
else. So a `Nursery` is a process of the training environment that has imported them, and forks a rank whenever it is
asked to. The rank runs the script as `python script.py` would. Nothing of the script itself is loaded beforehand.

Run with that environment's Python, this file is the process: a line of JSON in, a line out.
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
DEADLINE_SECONDS = 300  # for a machine that has much else to do
OF_A_RANK = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# One thread each: the order in which threads add up is no part of a promise, and threads that spin take the cores of
# other ranks. OpenMP reads this when torch is imported.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this environment without any trace of another run, on the CPU, offline, with one thread a rank."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in OF_A_RANK and not k.startswith("UGRO_")
    }
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        **ONE_THREAD,
        **changes,
    }


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and what it said: stdout and stderr in one."""

    code: int
    said: str


class Nursery:
    """A process that forks ranks; see above."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python, self.folder, self.count = python, folder, 0
        self.ports = ExitStack()
        self.process = subprocess.Popen(
            [python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )

    def start(self, argv: list[str], **environment: str) -> Rank:
        """A new rank that runs a script: its path and arguments."""
        self.count += 1
        log = self.folder / f"rank{self.count}.log"
        self._send(
            {"argv": argv, "env": clean_environment(**environment), "log": str(log)}
        )
        return Rank(self, self._receive(), log)

    def gang(
        self,
        argv: list[str],
        output: Path,
        size: int = 1,
        *,
        one_node: bool = False,
        **environment: str,
    ) -> list[Rank]:
        """Start `size` ranks of one run.

        Each believes to have a node of its own, and rank r writes into `output`/r; with `one_node` they share one, and
        all write into `output`/0.
        """
        # Late: the training environment has no `tests`.
        from tests.ports import reserved_port

        port = str(self.ports.enter_context(reserved_port()))
        meeting = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        ranks = []
        for rank in range(size):
            local_rank, node = (rank, 0) if one_node else (0, rank)
            of_this_rank = {
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                "LOCAL_WORLD_SIZE": str(size if one_node else 1),
                "UGRO_OUTPUT_DIR": str(output / str(node)),
            }
            given = {
                name: value.replace("{rank}", str(rank))
                for name, value in environment.items()
            }
            ranks.append(self.start(argv, **meeting, **of_this_rank, **given))
        return ranks

    def close(self) -> None:
        """End it, and every rank with it."""
        self.ports.close()
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(DEADLINE_SECONDS)
        self.process.stdout.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def _receive(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


class Rank:
    """One forked process."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self.nursery, self.pid, self.log = nursery, pid, log

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for it; pytest's own limit is the deadline."""
        self.nursery._send({"wait": self.pid})
        return Ended(self.nursery._receive(), self.log.read_text())


# ---- what follows runs in the training environment ----


def _serve() -> None:
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import Trainer  # noqa: F401
    from transformers.integrations import TensorBoardCallback  # noqa: F401

    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("wait"):
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            children.discard(pid)
        elif pid := os.fork():
            children.add(pid)
            print(pid, flush=True)
        else:
            _be_a_rank(**request)
    for pid in children:
        os.kill(pid, 9)


def _be_a_rank(argv: list[str], env: dict[str, str], log: str) -> None:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.clear()
        os.environ.update(env)
        sys.argv[:] = argv
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # a fork must never return into its parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
