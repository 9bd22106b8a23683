"""Misfortunes of the software on a node: environments, Pythons, login shells."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tests.hosts.helpers import covered, login_runs, made_python
from tests.preflight.stage import Misfortune, Named, Stage
from ugro_tasks.node.environment import STAMP

STALE = {
    "PET_NNODES": "2", "PET_NODE_RANK": "9", "PET_MASTER_PORT": "1", "PET_RDZV_BACKEND": "c10d",
    "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "RANK": "7", "WORLD_SIZE": "9", "LOCAL_RANK": "3",
    "GLOO_SOCKET_IFNAME": "wlan9", "NCCL_SOCKET_IFNAME": "wlan9",
}  # fmt: skip
STAND_IN = "it takes a second torch; UGRO's part has a stand-in"
# Of an environment with another torch, for torchrun by hand.
OTHER_TORCHRUN = os.environ.get("UGRO_OTHER_TORCHRUN", "")


@contextmanager
def other_torch(stage: Stage) -> Iterator[None]:
    use_on_lab1(stage, version="2.12.1+cpu", cuda=None)
    stage.torchruns["lab1"] = OTHER_TORCHRUN
    yield


@contextmanager
def other_cuda(stage: Stage) -> Iterator[None]:
    use_on_lab1(stage, version="2.13.0+cpu", cuda="12.8")
    yield


def use_on_lab1(stage: Stage, version: str, cuda: str | None) -> None:
    """lab1 has an environment of its own, with a stand-in torch."""
    python = made_python(stage.folder / "env", "pass\n", version, cuda)
    stage.nodes[1]["environment"] = {"manager": "existing", "python": str(python)}


@contextmanager
def environment_behind(stage: Stage) -> Iterator[None]:
    """As a sync left it that took another requirements.txt."""
    env, scripts = stage.folder / "env", stage.folder / "scripts"
    made_python(env, "pass\n", "2.13.0+cpu", None)
    has = {"python": "3.11", "torch": "2.13.0+cpu", "cuda": None}
    (env / STAMP).write_text(
        json.dumps({"manager": "venv", "digest": "0" * 64, "made_at": 1.0, **has})
    )
    scripts.mkdir()
    (scripts / "requirements.txt").write_text("torch==2.13.0\n")
    stage.document["paths"]["scripts"] = str(scripts)
    stage.nodes[1]["environment"] = {"manager": "venv", "path": str(env)}
    yield


@contextmanager
def no_python_on_path(stage: Stage) -> Iterator[None]:
    stage.type_everywhere("torchrun")
    with login_runs(stage.hosts[1], "PATH=/run/lab/bin"):
        yield


@contextmanager
def old_python_on_path(stage: Stage) -> Iterator[None]:
    """A stand-in: a Python that says that it is 3.6."""
    claim = "import sys; sys.version_info = (3, 6, 9, 'final', 0); code = sys.argv[1]; del sys.argv[1]; exec(code)"
    first_on_path(
        stage, f'#!/bin/sh\nshift 2\nexec /usr/bin/python3 -c "{claim}" "$@"\n'
    )
    stage.type_everywhere("torchrun")
    with login_runs(stage.hosts[1], f"PATH={stage.folder}/bin:$PATH"):
        yield


@contextmanager
def other_python_on_path(stage: Stage) -> Iterator[None]:
    made_python(stage.folder / "another")
    stage.type_everywhere("python3 -m torch.distributed.run")
    with login_runs(stage.hosts[0], f"PATH={stage.folder}/another/bin:$PATH"):
        yield


def first_on_path(stage: Stage, text: str) -> None:
    """A script called python3, in a folder that comes to be the first on PATH."""
    python = stage.folder / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(text)
    python.chmod(0o755)


@contextmanager
def stale_variables(stage: Stage) -> Iterator[None]:
    with login_runs(
        stage.hosts[2],
        "\n".join(f"export {name}={value}" for name, value in STALE.items()),
    ):
        yield


@contextmanager
def talkative_shell(stage: Stage) -> Iterator[None]:
    with login_runs(stage.hosts[1], "echo; echo 'Welcome to lab1!'"):
        yield


@contextmanager
def csh(stage: Stage) -> Iterator[None]:
    host = stage.hosts[1]
    shell, users = (
        shutil.which("tcsh"),
        host.run(["cat", "/etc/passwd"]).stdout.splitlines(),
    )
    users = [
        f"{line.rpartition(':')[0]}:{shell}" if line.startswith("root:") else line
        for line in users
    ]
    with covered(host, "/etc/passwd", "\n".join(users) + "\n"):
        yield


@contextmanager
def rsync_missing(stage: Stage) -> Iterator[None]:
    with covered(stage.hosts[1], "/usr/bin/rsync", ""):
        yield


SOFTWARE = [
    Misfortune(
        key="torch",
        words="one node has another torch",
        make=other_torch,
        named=Named(
            "cluster", "same torch", "lab1 2.12.1+cpu", "same versions everywhere"
        ),
        not_bare="" if OTHER_TORCHRUN else STAND_IN,
    ),
    Misfortune(
        key="cuda-build",
        words="one node has a torch for CUDA, the others one without",
        make=other_cuda,
        named=Named("cluster", "same CUDA", "lab1 12.8", "same versions everywhere"),
        not_bare=STAND_IN,
    ),
    Misfortune(
        key="behind",
        words="a node's environment was made from an older requirements.txt",
        make=environment_behind,
        named=Named(
            "lab1",
            "environment",
            "behind: made from another requirements.txt",
            "inv sync-envs --nodes lab1",
        ),
        not_bare=STAND_IN,
    ),
    Misfortune(
        key="no-python",
        words="no Python on the PATH of a login without terminal",
        make=no_python_on_path,
        named=Named("lab1", "reachable", "python3 was not found", "`python` of lab1"),
    ),
    Misfortune(
        key="old-python",
        words="the first Python on that PATH is 3.6",
        make=old_python_on_path,
        named=Named(
            "lab1", "reachable", "Python 3.6, and UGRO needs 3.8", "`python` of lab1"
        ),
    ),
    Misfortune(
        key="other-python",
        words="the first Python on that PATH has no torch",
        make=other_python_on_path,
    ),
    Misfortune(
        key="stale-variables",
        words="PET_*, MASTER_ADDR, RANK, GLOO_SOCKET_IFNAME of old in the login environment",
        make=stale_variables,
    ),
    Misfortune(
        key="talkative",
        words="the login shell prints a welcome",
        make=talkative_shell,
    ),
    Misfortune(
        key="csh",
        words="the login shell is tcsh",
        make=csh,
        needs="tcsh",
    ),
    Misfortune(
        key="no-rsync",
        words="rsync is not installed",
        make=rsync_missing,
    ),
]
