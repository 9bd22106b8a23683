"""The checkpoints in an experiment folder: whether they are whole, and the one to resume from.

A script writes a manifest beside a checkpoint once all its files are there (docs/checkpoints.md).
Each rank has a manifest of its own; files equal to rank 0's are fetched from rank 0 alone. On the
controller a manifest is stored last (`outputs/checkpoints.py`), so its presence means that the
rank's files have arrived with the right hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from msgspec import Struct

from ..codec import UNREADABLE, decode
from ..errors import UsageError
from ..files import tail_of
from ..node.protocol import MANIFEST_SUFFIX
from .experiment import Experiment
from .metrics import read_metrics
from .spec import Resume

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
RANKS_MOST = 1000


# Bounded: a node must not be able to send numbers too large for arithmetic.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class Part(Struct, frozen=True):
    """A file of a checkpoint."""

    bytes: Count
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True):
    """One rank's list of checkpoint files, with paths relative to the checkpoints folder."""

    checkpoint: str
    step: Count
    rank: int
    ranks: tuple[int, ...]  # all ranks with files in it
    files: dict[str, Part]
    epoch: float | None = None
    world_size: int | None = None


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint with its fetched manifests; `missing` is the reason if it is not whole."""

    name: str
    step: int
    epoch: float | None
    manifests: dict[int, Manifest]
    missing: str | None

    @property
    def size_bytes(self) -> int:
        """Return the size of all files; a file shared by several ranks counts once."""
        parts = {
            (path, part)
            for m in self.manifests.values()
            for path, part in m.files.items()
        }
        return sum(part.bytes for _, part in parts)


def read_manifest(content: bytes) -> Manifest:
    """Parse a manifest from a file or a frame.

    Raises ValueError if it is none, or if it names paths outside its checkpoint.
    """
    try:
        manifest = decode(Manifest, content)
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from error
    ranks = {manifest.rank, *manifest.ranks}
    if (
        not NAME.fullmatch(manifest.checkpoint)
        or min(ranks) < 0
        or max(ranks) >= RANKS_MOST
    ):
        raise ValueError(
            f"its checkpoint {manifest.checkpoint!r} or its rank {manifest.rank} cannot be"
        )
    for path in manifest.files:
        parts = path.split("/")
        inside = parts[0] == manifest.checkpoint and not {"", ".", ".."} & set(parts)
        if not inside or path.endswith(MANIFEST_SUFFIX) or "\0" in path:
            raise ValueError(
                f"it names {path!r}, which is no part of {manifest.checkpoint}"
            )
    return manifest


# ---- at home ----


def at_home(experiment: Experiment) -> list[Checkpoint]:
    """Return the checkpoints with a manifest of rank 0 here, the most advanced last.

    They are sorted by epoch if all have one, else by step; with fewer ranks an epoch has more steps.
    """
    firsts = stored_manifests(experiment, 0)
    others = {rank for first in firsts.values() for rank in first.ranks} - {0}
    stored = {rank: stored_manifests(experiment, rank) for rank in others}
    stored[0] = firsts
    found = [_at_home(experiment, first, stored) for first in firsts.values()]
    epochs = [checkpoint.epoch for checkpoint in found]
    by_step = sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.name))
    return (
        by_step
        if None in epochs
        else sorted(by_step, key=lambda checkpoint: checkpoint.epoch or 0.0)
    )


def newest_whole(
    experiment: Experiment, passed_over: Callable[[str], None]
) -> Checkpoint | None:
    """Return the last checkpoint that is whole on all ranks, every hash verified; None without one.

    `passed_over` is called with the reason for each later one.
    """
    for checkpoint in reversed(at_home(experiment)):
        why = checkpoint.missing
        for rank in checkpoint.manifests if not why else ():
            own = own_part(checkpoint.manifests[rank], checkpoint.manifests[0])
            why = why or damage(experiment, rank, own, read=True)
        if not why:
            return checkpoint
        passed_over(f"{checkpoint.name} is not whole: {why}")
    return None


def metrics_until(experiment: Experiment, step: int) -> bytes:
    """Return the lines of metrics.jsonl up to a step, for a job that resumes there."""
    kept = []
    for line in tail_of(experiment.metrics, 0).splitlines(keepends=True):
        logged = read_metrics(line) or {}
        if isinstance(at := logged.get("step"), int) and at <= step:
            kept.append(line)
    return b"".join(kept)


def resume_from(experiment: Experiment) -> Resume:
    """Return the checkpoint from which a new job can resume this one.

    Raises UsageError if the job is not finished or has no whole checkpoint.
    """
    if not experiment.state().phase.finished:
        raise UsageError(
            f"{experiment.job_id} is not finished; wait for it (inv attach {experiment.job_id}) or end it "
            f"(inv stop {experiment.job_id})"
        )
    passed: list[str] = []
    checkpoint = newest_whole(experiment, passed.append)
    if checkpoint is None:
        words = passed[0] if passed else "it has none here"
        raise UsageError(
            f"{experiment.job_id} has no checkpoint to go on from: {words}. "
            f"Fetch what its nodes still have: inv gather {experiment.job_id}"
        )
    return Resume(
        job_id=experiment.job_id, checkpoint=checkpoint.name, step=checkpoint.step
    )


def stored_manifests(experiment: Experiment, rank: int) -> dict[str, Manifest]:
    """Return {checkpoint: manifest} of a rank, damaged manifests left out."""
    found = {}
    for path in experiment.checkpoint_folder(rank).glob(f"*{MANIFEST_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):  # damaged: as good as absent
            manifest = read_manifest(path.read_bytes())
            found[manifest.checkpoint] = manifest
    return found


def with_manifest(experiment: Experiment) -> set[str]:
    """Return the names of the checkpoints with a manifest of any rank."""
    return {
        name
        for rank in experiment.ranks_gathered()
        for name in stored_manifests(experiment, rank)
    }


def _at_home(
    experiment: Experiment,
    first: Manifest,
    stored: Mapping[int, Mapping[str, Manifest]],
) -> Checkpoint:
    """Return the checkpoint with `first` as rank 0's manifest; `stored` has all, by rank."""
    manifests, missing = {0: first}, None
    for rank in first.ranks:
        manifest = stored[rank].get(first.checkpoint)
        if manifest is None or (manifest.step, manifest.ranks) != (
            first.step,
            first.ranks,
        ):
            missing = missing or f"the part of rank {rank} has not come"
            continue
        manifests[rank] = manifest
        missing = missing or damage(
            experiment, rank, own_part(manifest, first), read=False
        )
    return Checkpoint(
        name=first.checkpoint,
        step=first.step,
        epoch=first.epoch,
        manifests=manifests,
        missing=missing,
    )


def own_part(manifest: Manifest, first: Manifest) -> dict[str, Part]:
    """Return the rank's files that differ from rank 0's."""
    if manifest.rank == 0:
        return manifest.files
    return {
        path: part
        for path, part in manifest.files.items()
        if first.files.get(path) != part
    }


def damage(
    experiment: Experiment, rank: int, files: Mapping[str, Part], *, read: bool
) -> str | None:
    """Return the first fault of a rank's files here, None without one.

    Sizes are compared, with `read` the hashes as well.
    """
    for path, part in files.items():
        file = experiment.checkpoint_folder(rank) / path
        try:
            if file.stat().st_size != part.bytes:
                return f"{file} has another size than its manifest says"
            if read:
                with file.open("rb") as content:
                    if (
                        hashlib.file_digest(content, "sha256").hexdigest()
                        != part.sha256
                    ):
                        return f"{file} is not what its manifest says"
        except OSError as error:
            return f"{file}: {error.strerror}"
    return None
