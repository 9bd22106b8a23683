"""config.json: the request, its destination, and the plan."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

from .plan import LaunchPlan
from .record_file import FIRST_FORMAT, FORMAT, Document, kept_word
from .spec import JobSpec


class Kind(StrEnum):
    """The sort of work a job does. A word of another version is kept, and is none of these."""

    TRAINING = "training"
    TRIAL = "trial"  # of a sweep
    SERVING = "serving"
    COMMAND = "command"
    TEST = "test"

    @classmethod
    def _missing_(cls, value: object) -> Kind | None:
        return kept_word(cls, value)


class Code(Struct, frozen=True, kw_only=True):
    """The scripts as launched."""

    sha256: str
    git_commit: str | None


class JobRecord(JobSpec, frozen=True, kw_only=True):
    """config.json: the spec with its destination, and the plan once there is one."""

    format: int = FORMAT
    kind: Kind = Kind.TRAINING
    job_id: str
    nonce: str  # unlike that of a job with the same id from another controller
    started_at: str  # ISO 8601, local time of the launch command with its offset
    nodes: tuple[str, ...]
    code: Code
    cluster: dict[str, Any]  # the Cluster as it was in the file at launch
    ugro_version: str
    plan: LaunchPlan | None = None  # of the last attempt


def in_present_format(document: Document) -> Document:
    """Return a record as JSON data with its format, which the first one did not tell."""
    return {"format": FIRST_FORMAT, **document}
