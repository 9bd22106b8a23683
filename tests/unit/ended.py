"""A job that has ended, at home and on its nodes; the nodes are folders of this machine, the rsync is the real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.factories import (
    make_cluster,
    make_node,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
)
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Attempt, JobState, RankState
from ugro_tasks.outputs.gather import gather


class EndedJob:
    """Its folders on the nodes are as a supervisor leaves them, with nothing but metrics written."""

    def __init__(
        self,
        root: Path,
        name: str = "exp1",
        *,
        ranks: int = 3,
        attempts: int = 1,
        stamp: str | None = None,
    ) -> None:
        self.ranks = range(ranks)
        self.cluster = make_local_cluster(root, ranks)
        self.experiments = Experiments(root / "experiments")
        # Of other tests in the same second, processes with this token must not count as the job's.
        nonce = f"{os.getpid():08x}"
        record = make_record(self.cluster, name=name, nonce=nonce)
        self.home = self.experiments.create(record, make_scripts(root / "scripts"))
        if stamp:
            self.home = Experiment(
                self.home.folder.rename(self.experiments.folder / f"{name}_{stamp}")
            )
            self.home.save_record(
                msgspec.structs.replace(self.home.record(), job_id=self.home.job_id)
            )
        unique = f"{self.home.job_id}.{nonce}"
        self.attempts = [
            unique,
            *(f"{unique}-{number}" for number in range(2, attempts + 1)),
        ]
        for attempt in self.attempts:
            for rank in self.ranks:
                folder = self.folder(rank, attempt)
                (folder / "output").mkdir(parents=True)
                (folder / "output" / "metrics.jsonl").write_text("{}\n")
                (folder / "plan.json").write_bytes(
                    msgspec.json.encode({"token": self.token(rank, attempt)})
                )
        self.home.metrics.append_lines(b"{}\n")
        plans = tuple(
            make_node_plan(rank, folder=str(self.folder(rank)), token=self.token(rank))
            for rank in self.ranks
        )
        plan = msgspec.structs.replace(make_plan_of(plans), attempt=attempts)
        self.home.save_record(msgspec.structs.replace(self.home.record(), plan=plan))
        self.end(Phase.SUCCEEDED)

    def folder(self, rank: int, attempt: str | None = None) -> Path:
        """Where a rank ran; in the last attempt where none is named."""
        return (
            Path(self.cluster.nodes[rank].project)
            / "jobs"
            / (attempt or self.attempts[-1])
        )

    def token(self, rank: int, attempt: str | None = None) -> str:
        return f"{attempt or self.attempts[-1]}:gpu{rank}:test{rank}"

    def end(
        self,
        phase: Phase,
        *,
        proven_gone: bool = True,
        ago_seconds: float = 100.0,
        **more: Any,
    ) -> None:
        """The state at home."""
        ranks = tuple(
            RankState(rank=rank, node=f"gpu{rank}", proven_gone=proven_gone)
            for rank in self.ranks
        )
        ended, nodes = (
            time.time() - ago_seconds,
            tuple(f"gpu{rank}" for rank in self.ranks),
        )
        attempts = tuple(
            Attempt(number=number, nodes=nodes, began_at=1.0, bases={})
            for number in range(1, len(self.attempts) + 1)
        )
        state = JobState(
            phase=phase, started_at=1.0, ended_at=ended, ranks=ranks, attempts=attempts
        )
        self.home.save_state(msgspec.structs.replace(state, **more))

    def write(self, rank: int, name: str, content: bytes) -> Path:
        """A file that the rank wrote."""
        path = self.folder(rank) / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def write_checkpoint(
        self, rank: int, step: int, content: bytes, ranks: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        """A rank's part of checkpoint-<step>, and its manifest."""
        name = f"checkpoint-{step}"
        path = self.write(rank, f"checkpoints/{name}/rank{rank}.bin", content)
        files = {
            f"{name}/{path.name}": {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        }
        manifest = {
            "checkpoint": name,
            "step": step,
            "rank": rank,
            "ranks": ranks,
            "files": files,
        }
        self.write(
            rank, f"checkpoints/{name}.manifest.json", msgspec.json.encode(manifest)
        )

    def gather(self, *, verify: bool = False, leave_links: bool = False) -> list[str]:
        gathering = gather(
            self.home,
            lambda _what, _percent: None,
            verify=verify,
            leave_links=leave_links,
        )
        return list(gathering.cleaned)


def make_local_cluster(root: Path, ranks: int = 3) -> Cluster:
    """Nodes of this machine, each with a project folder of its own in `root`."""
    nodes = tuple(
        make_node(
            rank, transport="local", address="127.0.0.1", python=sys.executable, slot=f"test{rank}",
            project=str(root / f"node{rank}"),
        )
        for rank in range(ranks)
    )  # fmt: skip
    return make_cluster(root, nodes)


def store(
    job: Experiment,
    name: str,
    step: int,
    rank: int,
    ranks: tuple[int, ...],
    **files: bytes,
) -> None:
    """A rank's part of a checkpoint as the mirror leaves it at home."""
    folder = job.outputs.checkpoints(rank).path
    (folder / name).mkdir(parents=True, exist_ok=True)
    told = {}
    for file, content in files.items():
        (folder / name / file).write_bytes(content)
        told[f"{name}/{file}"] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    manifest = {
        "checkpoint": name,
        "step": step,
        "epoch": step / 10,
        "rank": rank,
        "ranks": ranks,
        "files": told,
    }
    stored = job.outputs.manifest(rank, name)
    stored.parent.make()
    stored.replace(json.dumps(manifest).encode())


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """The folder on a disk of its own; skips the test where none can be mounted."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(folder)]
    if subprocess.run(argv, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
