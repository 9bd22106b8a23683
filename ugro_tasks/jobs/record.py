"""config.json: the request, its destination, and the plan."""

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
    """config.json: the spec, its destination, and the plan once there is one."""

    job_id: str
    nonce: str  # unlike that of a job with the same id from another controller
    job_name: str
    model: str
    dataset: str
    epochs: int
    learning_rate: float
    script: str
    args: tuple[str, ...]
    env: dict[str, str]
    force: bool
    started_at: str  # ISO 8601, local time of the launch command
    nodes: tuple[str, ...]
    code: Code
    cluster: dict[str, Any]  # the Cluster as it was in the file at launch
    ugro_version: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    sync: bool = True
    max_restarts: int = 0
    min_nodes: int | None = None
    resume: Resume | None = None
    plan: LaunchPlan | None = None  # of the last attempt

    @property
    def spec(self) -> JobSpec:
        """Return the user's request."""
        shared = {
            name: getattr(self, name)
            for name in JobSpec.__struct_fields__
            if name != "name"
        }
        return JobSpec(name=self.job_name, **shared)
