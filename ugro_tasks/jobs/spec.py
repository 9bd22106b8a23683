"""The user's request for a job, and its validation."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct, field

from ..errors import UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Of servings and trials.
RESERVED = re.compile(r"\.(?:serve|\d+)\Z")
SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*\.py")


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Resume(Struct, frozen=True, kw_only=True):
    """A checkpoint to resume from."""

    job_id: str  # the job with the checkpoint
    checkpoint: str  # its name there, e.g. checkpoint-50
    step: int


class JobSpec(Struct, frozen=True, kw_only=True):
    """The user's request for a job."""

    name: str = field(name="job_name")
    script: str
    model: str
    dataset: str
    epochs: int
    learning_rate: float
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    # What model, dataset, epochs and learning_rate may be, too, training/settings.py has checked.
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    force: bool = False
    sync: bool = True  # bring environments that are behind up to date before the start
    max_restarts: int = 0  # of all ranks, after a failed rank or a lost node
    # The fewest nodes for a restart; None: all.
    min_nodes: int | None = None
    resume: Resume | None = None

    def _words(self) -> dict[str, tuple[str, ...]]:
        """Return {flag: words given with it}."""
        env = tuple(self.env.values())
        return {
            "--model": (self.model,),
            "--dataset": (self.dataset,),
            "--args": self.args,
            "--env": env,
        }

    def checked(self) -> JobSpec:
        """Return the spec itself; raises UsageError with every unusable value."""
        from ..node.protocol import MISLEADING  # late: only a launch needs it

        faults = []
        if not NAME.fullmatch(self.name):
            faults.append(
                f"--name {self.name!r}: use letters, digits, '.', '_' and '-' (64 at most)"
            )
        if not SCRIPT.fullmatch(self.script) or ".." in self.script.split("/"):
            faults.append(
                f"--script {self.script!r}: name a .py file inside the scripts folder"
            )
        if RESERVED.search(self.name):
            faults.append(
                f"--name {self.name!r}: names that end in .serve or .<number> are UGRO's own"
            )
        for key in self.env:
            if not VARIABLE.fullmatch(key):
                faults.append(f"--env {key!r}: not a variable's name; use KEY=VALUE")
        for key in self.env:
            if MISLEADING.match(key):
                faults.append(f"--env {key}: UGRO or torchrun sets this itself")
        for flag, words in self._words().items():
            for word in words:
                if not _can_travel(word):
                    faults.append(
                        f"{flag} {word!r}: a NUL byte or no UTF-8; a program cannot be given that"
                    )
        if faults:
            raise UsageError("\n".join(faults))
        return self


def _can_travel(word: str) -> bool:
    try:
        return b"\0" not in word.encode()
    except UnicodeEncodeError:
        return False
