"""config.json: what was asked for, where it goes, and the plan."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from .plan import LaunchPlan
from .spec import JobSpec, Resume


class Code(Struct, frozen=True, kw_only=True):
    """The scripts as launched."""

    sha256: str
    git_commit: str | None


class JobRecord(Struct, frozen=True, kw_only=True):
    """config.json: the spec, where it goes, and the plan once there is one."""

    job_id: str
    nonce: str  # tells it from a job of the same id and another controller
    job_name: str
    model: str
    dataset: str
    epochs: int
    learning_rate: float
    script: str
    args: tuple[str, ...]
    env: dict[str, str]
    force: bool
    started_at: str  # ISO 8601, local time: when the launch was asked for
    nodes: tuple[str, ...]
    code: Code
    cluster: dict[str, Any]  # the Cluster that it runs on, as in the file at that time
    ugro_version: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    sync: bool = True
    max_restarts: int = 0
    min_nodes: int | None = None
    resume: Resume | None = None
    plan: LaunchPlan | None = None  # of the last attempt

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        shared = {
            name: getattr(self, name)
            for name in JobSpec.__struct_fields__
            if name != "name"
        }
        return JobSpec(name=self.job_name, **shared)
