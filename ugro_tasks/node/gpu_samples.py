"""Samples of a node's GPUs beside its rank: a program every few seconds, and a line a card in gpu.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from typing import Optional

from .gpu import GPU_FIELDS, nvidia_smi

SAMPLE_SECONDS = 5.0


class GpuSampler:
    """Takes samples, one at a time; for a context, at whose end the program is ended.

    Whoever reaps this process's children tells it of each. A lost sample must not end the training.
    """

    def __init__(self, folder: str, node: str) -> None:
        self.path = os.path.join(folder, "gpu.jsonl")
        self.node = node
        self.next_at = float("inf")
        if shutil.which("nvidia-smi"):
            self.next_at = time.monotonic()
        self._program: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> "GpuSampler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._program:
            self._program.kill()

    def take_if_due(self, now: float) -> None:
        """Start the program if it is time, and the last one has ended."""
        if now < self.next_at:
            return
        self.next_at = now + SAMPLE_SECONDS
        if self._program is None:
            with contextlib.suppress(OSError):
                self._program = subprocess.Popen(
                    nvidia_smi("gpu", GPU_FIELDS),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )

    def note_end(self, pid: int) -> None:
        """Write the sample down if the child that has ended is the program."""
        program = self._program
        if program is None or program.pid != pid:
            return
        self._program = None
        # It was reaped by pid, unknown to Popen.
        program.returncode = 0
        with contextlib.suppress(OSError):
            self._write(program)

    def _write(self, program: "subprocess.Popen[bytes]") -> None:
        assert program.stdout
        names = GPU_FIELDS.split(",")
        with program.stdout as pipe, open(self.path, "a") as file:
            output = pipe.read().decode("utf-8", "replace")
            for line in output.splitlines():
                values = [value.strip() for value in line.split(",")]
                if len(values) != len(names):
                    continue
                sample = dict(zip(names, values), node=self.node, time=time.time())
                file.write(json.dumps(sample) + "\n")
