"""The checkpoints in an experiment folder: whether they are whole, and the one to resume from.

A script writes a manifest beside a checkpoint once all its files are there (docs/checkpoints.md).
Each rank has a manifest of its own; files equal to rank 0's are fetched from rank 0 alone. On the
controller a manifest is stored last, outside of the outputs (`outputs.py`), so its presence means
that the rank's files have arrived with the right hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Struct

from ..codec import UNREADABLE, decode
from ..errors import UsageError
from ..node.protocol import MANIFEST_SUFFIX
from .experiment import Experiment
from .metrics import read_metrics
from .spec import Resume

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
RANKS_MOST = 1000


# Bounded: a node must not be able to send numbers too large for arithmetic.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class CheckpointFile(Struct, frozen=True):
    """A file of a checkpoint."""

    bytes: Count
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True):
    """One rank's list of checkpoint files, with paths relative to the checkpoints folder."""

    checkpoint: str
    step: Count
    rank: int
    ranks: tuple[int, ...]  # all ranks with files in it
    files: dict[str, CheckpointFile]
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
        files: set[tuple[str, CheckpointFile]] = set()
        for manifest in self.manifests.values():
            files.update(manifest.files.items())
        return sum(file.bytes for _, file in files)


def read_manifest(content: bytes) -> Manifest:
    """Parse a manifest from a file or a frame.

    Raises ValueError if it is none, or if it names paths outside its checkpoint.
    """
    try:
        manifest = decode(Manifest, content)
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from error
    ranks = {manifest.rank, *manifest.ranks}
    ranks_fit = min(ranks) >= 0 and max(ranks) < RANKS_MOST
    if not NAME.fullmatch(manifest.checkpoint) or not ranks_fit:
        raise ValueError(
            f"its checkpoint {manifest.checkpoint!r} or its rank {manifest.rank} cannot be"
        )
    for path in manifest.files:
        parts = path.split("/")
        is_plain = {"", ".", ".."}.isdisjoint(parts)
        inside = is_plain and parts[0] == manifest.checkpoint
        if not inside or path.endswith(MANIFEST_SUFFIX) or "\0" in path:
            raise ValueError(
                f"it names {path!r}, which is no part of {manifest.checkpoint}"
            )
    return manifest


# ---- in an experiment folder ----


def fetched_checkpoints(experiment: Experiment) -> list[Checkpoint]:
    """Return the checkpoints with a manifest of rank 0 here, the most advanced last.

    They are sorted by epoch if all have one, else by step: an epoch of fewer ranks has more steps.
    """
    firsts = stored_manifests(experiment, 0)
    stored = {0: firsts}
    for first in firsts.values():
        for rank in first.ranks:
            if rank not in stored:
                stored[rank] = stored_manifests(experiment, rank)
    found = [_assembled(experiment, first, stored) for first in firsts.values()]
    found.sort(key=lambda checkpoint: (checkpoint.step, checkpoint.name))
    if all(checkpoint.epoch is not None for checkpoint in found):
        found.sort(key=lambda checkpoint: checkpoint.epoch or 0.0)
    return found


def newest_whole(
    experiment: Experiment, passed_over: Callable[[str], None]
) -> Checkpoint | None:
    """Return the last checkpoint that is whole on all ranks, every hash verified; None without one.

    `passed_over` is called with the reason for each later one.
    """
    for checkpoint in reversed(fetched_checkpoints(experiment)):
        fault = checkpoint.missing or _first_damage(experiment, checkpoint)
        if not fault:
            return checkpoint
        passed_over(f"{checkpoint.name} is not whole: {fault}")
    return None


def _first_damage(experiment: Experiment, checkpoint: Checkpoint) -> str | None:
    first = checkpoint.manifests[0]
    for rank, manifest in checkpoint.manifests.items():
        own = own_files(manifest, first)
        fault = find_damage(experiment, rank, own, read=True)
        if fault:
            return fault
    return None


def metrics_until(experiment: Experiment, step: int) -> bytes:
    """Return the lines of metrics.jsonl up to a step, for a job that resumes there."""
    kept = []
    for line in experiment.metrics.read().splitlines(keepends=True):
        logged = read_metrics(line) or {}
        line_step = logged.get("step")
        if isinstance(line_step, int) and line_step <= step:
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
    for file in experiment.outputs.manifests(rank):
        with contextlib.suppress(OSError, ValueError):  # damaged: as good as absent
            manifest = read_manifest(file.read())
            found[manifest.checkpoint] = manifest
    return found


def checkpoints_with_manifest(experiment: Experiment) -> set[str]:
    """Return the names of the checkpoints with a manifest of any rank."""
    names: set[str] = set()
    for rank in experiment.outputs.ranks():
        names.update(stored_manifests(experiment, rank))
    return names


def checkpoint_bytes(experiment: Experiment, name: str, ranks: Iterable[int]) -> int:
    """Return the bytes of a checkpoint's files here, of all these ranks."""
    folders = [experiment.outputs.checkpoints(rank) for rank in ranks]
    return sum(folder.size(name) for folder in folders)


def _assembled(
    experiment: Experiment,
    first: Manifest,
    stored: Mapping[int, Mapping[str, Manifest]],
) -> Checkpoint:
    """Return the checkpoint with `first` as rank 0's manifest; `stored` has all, by rank."""
    manifests = {0: first}
    missing = None
    for rank in first.ranks:
        manifest = stored[rank].get(first.checkpoint)
        if manifest is None or not _are_of_one_save(manifest, first):
            missing = missing or f"the part of rank {rank} has not come"
            continue
        manifests[rank] = manifest
        own = own_files(manifest, first)
        missing = missing or find_damage(experiment, rank, own, read=False)
    return Checkpoint(
        name=first.checkpoint,
        step=first.step,
        epoch=first.epoch,
        manifests=manifests,
        missing=missing,
    )


def _are_of_one_save(manifest: Manifest, first: Manifest) -> bool:
    return manifest.step == first.step and manifest.ranks == first.ranks


def own_files(manifest: Manifest, first: Manifest) -> dict[str, CheckpointFile]:
    """Return the rank's files that differ from rank 0's."""
    if manifest.rank == 0:
        return manifest.files
    return {
        path: part
        for path, part in manifest.files.items()
        if first.files.get(path) != part
    }


def find_damage(
    experiment: Experiment,
    rank: int,
    files: Mapping[str, CheckpointFile],
    *,
    read: bool,
) -> str | None:
    """Return the first fault of a rank's files here, None without one.

    Sizes are compared, with `read` the hashes as well.
    """
    for path, part in files.items():
        file = experiment.outputs.checkpoints(rank).file(path)
        try:
            with file.open() as opened:
                if opened.seek(0, 2) != part.bytes:
                    return f"{file.path} has another size than its manifest says"
                if read and _sha256(opened) != part.sha256:
                    return f"{file.path} is not what its manifest says"
        except OSError as error:
            return f"{file.path}: {error.strerror}"
    return None


def _sha256(content: io.BufferedReader) -> str:
    content.seek(0)
    return hashlib.file_digest(content, "sha256").hexdigest()
