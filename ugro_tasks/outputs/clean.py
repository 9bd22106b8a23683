"""Removal of finished jobs' files on the nodes, and of their old checkpoints on the controller.

A job is never touched unless it has ended and all of it is here. On a node, only folders with a job
id and nonce of this experiments folder are removed, and only if no process of the job lives in them;
the node checks that. Before that it is asked what it has, and a folder with more than is here stays.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from ..cluster.model import Cluster
from ..errors import RecordError, UgroError
from ..files import Entry, Folder
from ..hosts.answers import CleanAnswer, CleanedFolder
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.operations import Clean
from ..hosts.requests import ask
from ..jobs.attempt_names import attempt_name, folder_name
from ..jobs.checkpoints import (
    checkpoint_bytes,
    checkpoints_with_manifest,
    fetched_checkpoints,
)
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.metrics import measure
from ..jobs.record import JobRecord
from ..jobs.state import Event, JobState
from ..node.processes import job_part
from ..node.tree import PARTIAL_FOLDER
from .home import RanAttempt, missing, ran_attempts

HOME = "home"
REMOVE_SECONDS = 600.0  # allowed for hundreds of gigabytes on a node


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The user's request. `names` are names of jobs, meaning all jobs of that name, or ids."""

    names: tuple[str, ...] = ()  # (): all jobs
    older_than_seconds: float = 0.0  # since the end of the job
    keep_last: int = 0  # the number of newest jobs to leave alone
    # Also remove checkpoints here, except the newest whole one and the best.
    at_home: bool = False
    dry_run: bool = False


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A removed path, or one to be removed. Bytes are those on a node's disk, or of files here."""

    where: str  # a node, or HOME
    job_id: str
    path: str
    bytes: int


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """A job with files that stay, and the reason."""

    job_id: str
    reason: str


class Cleaning(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `clean`, or with `dry_run` its forecast."""

    dry_run: bool
    removals: list[Removal]
    stays: list[Stay]
    unreached: dict[str, str]  # {node: the error}
    # {node: number of job folders of no experiment here}; they stay
    foreign: dict[str, int]

    @property
    def bytes_by_place(self) -> dict[str, int]:
        """Return {node or HOME: bytes removed there}."""
        sizes: dict[str, int] = {}
        for removal in self.removals:
            sizes[removal.where] = sizes.get(removal.where, 0) + removal.bytes
        return sizes


class _FinishedJob(msgspec.Struct, frozen=True):
    """A finished job that may be cleaned."""

    experiment: Experiment
    record: JobRecord
    state: JobState


def clean(
    experiments: Experiments, cluster: Cluster, wish: Wish
) -> tuple[Cleaning, list[UgroError]]:
    """Remove the chosen jobs' files; return the result, and the errors of nodes not reached.

    Raises JobNotFound for a name without a job.
    """
    over, stays = _choose(experiments, wish)
    by_node = _folders(over, cluster, stays)
    removals: list[Removal] = []
    errors: list[UgroError] = []
    unreached: dict[str, str] = {}
    foreign: dict[str, int] = {}
    # Here first: on a full disk, nothing could be recorded about the nodes.
    if wish.at_home:
        needed = _resumed_from(experiments)
        for job in over:
            try:
                removals += _clean_here(job, needed, dry_run=wish.dry_run)
            except OSError as error:
                stays.append(_trouble(job, error))
    ours = set(_known(experiments))
    answers = _ask_nodes(cluster, by_node, _Home(over), remove=not wish.dry_run)
    for node, answer in answers.items():
        if isinstance(answer, UgroError):
            errors.append(answer)
            unreached[node] = answer.text
            continue
        count = len({name for name in answer.others if job_part(name) not in ours})
        if count:
            foreign[node] = count
        for job in over:
            folders = _folders_of(job, node, answer)
            removals += _take_note(job, node, folders, stays, dry_run=wish.dry_run)
    found = Cleaning(
        dry_run=wish.dry_run,
        removals=removals,
        stays=stays,
        unreached=unreached,
        foreign=foreign,
    )
    return found, errors


def _folders_of(
    job: _FinishedJob, node: str, answer: CleanAnswer
) -> dict[str, CleanedFolder]:
    names = [name for name in _names(job, node) if name in answer.folders]
    return {name: answer.folders[name] for name in names}


# ---- which jobs ----


def _choose(
    experiments: Experiments, wish: Wish
) -> tuple[list[_FinishedJob], list[Stay]]:
    for name in wish.names:
        experiments.find(name)
    over: list[_FinishedJob] = []
    stays: list[Stay] = []
    found: list[_FinishedJob] = []
    for experiment in experiments.all():
        if not _is_named(experiment, wish):
            continue
        try:
            job = _FinishedJob(
                experiment, experiment.signed_record(), experiment.state()
            )
        except RecordError as error:
            why = error.text.removeprefix(f"{experiment.job_id}: ")
            stays.append(Stay(job_id=experiment.job_id, reason=why))
            continue
        if job.record.plan is None and job.state.phase.finished:
            continue  # it never ran, so it has no files on nodes
        found.append(job)
    found.sort(key=lambda job: job.state.submitted_at, reverse=True)
    for place, job in enumerate(found, start=1):
        reason = _reason_to_stay(job, wish, place)
        if reason:
            stays.append(Stay(job_id=job.experiment.job_id, reason=reason))
        else:
            over.append(job)
    return over, stays


def _is_named(experiment: Experiment, wish: Wish) -> bool:
    if not wish.names:
        return True
    return experiment.name in wish.names or experiment.job_id in wish.names


def _reason_to_stay(job: _FinishedJob, wish: Wish, place: int) -> str | None:
    if not job.state.phase.finished:
        return str(job.state.phase)
    if place <= wish.keep_last:
        return f"one of the newest {wish.keep_last}"
    if time.time() - (job.state.ended_at or 0.0) < wish.older_than_seconds:
        return "not old enough"
    if job.state.started_at and not job.state.gathered_at:
        return f"not gathered; first: inv gather {job.experiment.job_id}"
    return None


def _known(experiments: Experiments) -> Iterator[str]:
    for experiment in experiments.all():
        with contextlib.suppress(RecordError):
            yield attempt_name(experiment.record(), 1)


# ---- on the nodes ----


def _names(job: _FinishedJob, node: str) -> list[str]:
    numbers = [attempt.number for attempt in job.state.attempts]
    numbers.append(job.record.plan.attempt if job.record.plan else 1)
    attempts = range(1, max(numbers) + 1)
    return [folder_name(job.record, number, node) for number in attempts]


def _folders(
    over: Sequence[_FinishedJob], cluster: Cluster, stays: list[Stay]
) -> dict[str, list[tuple[str, str]]]:
    """Return {node: [(project folder, name of a job's folder)]}."""
    chosen: dict[str, list[tuple[str, str]]] = {}
    for job in over:
        try:
            then = job.experiment.cluster()
        except RecordError as error:
            stays.append(Stay(job_id=job.experiment.job_id, reason=error.text))
            continue
        for node in then.nodes:
            if node.name in job.state.cleaned:
                continue
            if all(node.name != here.name for here in cluster.nodes):
                reason = f"{node.name}: not in the cluster file, or left out by --nodes"
                stays.append(Stay(job_id=job.experiment.job_id, reason=reason))
                continue
            folders = [(node.project, name) for name in _names(job, node.name)]
            chosen.setdefault(node.name, []).extend(folders)
    return chosen


class _Home:
    """What is here of the jobs to be cleaned."""

    def __init__(self, over: Sequence[_FinishedJob]) -> None:
        self._attempts: dict[str, tuple[_FinishedJob, RanAttempt]] = {}
        for job in over:
            if not job.state.started_at:
                continue
            with contextlib.suppress(RecordError):  # its folders are not asked for
                nodes = job.experiment.cluster_in(job.record).nodes
                for attempt in ran_attempts(job.experiment, job.record, job.state):
                    for node in nodes:
                        name = folder_name(job.record, attempt.number, node.name)
                        self._attempts[name] = (job, attempt)

    def reason_to_keep(
        self, name: str, folder: CleanedFolder, host: Host
    ) -> str | None:
        """Return why a folder has to stay on a node: all of it that is not here."""
        if name not in self._attempts:
            return None  # nothing ever ran in it
        job, attempt = self._attempts[name]
        node = host.node.name
        plans = [plan for plan in attempt.plans if plan.node == node]
        if not plans:
            return f"attempt {attempt.number} was not planned for this node"
        state = job.experiment.state()
        try:
            return missing(job.experiment, attempt, plans[0], host, folder, state)
        except UgroError as error:
            return f"it cannot be compared with what is here: {error.text}"


def _ask_nodes(
    cluster: Cluster,
    by_node: Mapping[str, list[tuple[str, str]]],
    home: _Home,
    *,
    remove: bool,
) -> dict[str, CleanAnswer | UgroError]:
    """Have the nodes tell of their folders, and remove those that are here as well."""
    if not by_node:
        return {}

    def request(folders: list[tuple[str, str]], host: Host) -> CleanAnswer:
        look = Clean(folders=folders, remove=False)
        answer = ask(host, look, timeout_seconds=REMOVE_SECONDS)
        for name, folder in answer.folders.items():
            if not folder.kept:
                kept = home.reason_to_keep(name, folder, host)
                answer.folders[name] = msgspec.structs.replace(folder, kept=kept)
        free = [
            (project, name)
            for project, name in folders
            if name in answer.folders and not answer.folders[name].kept
        ]
        if remove and free:
            removal = Clean(folders=free, remove=True)
            removed = ask(host, removal, timeout_seconds=REMOVE_SECONDS)
            answer.folders.update(removed.folders)
        return answer

    work = {name: partial(request, folders) for name, folders in by_node.items()}
    with Fleet.of(cluster.subset(by_node)) as fleet:
        answers: dict[str, CleanAnswer | UgroError] = fleet.each(work)
    return answers


def _take_note(
    job: _FinishedJob,
    node: str,
    folders: Mapping[str, CleanedFolder],
    stays: list[Stay],
    *,
    dry_run: bool,
) -> list[Removal]:
    """Return the removals on a node, and record them in the job's folder."""
    job_id = job.experiment.job_id
    gone = []
    for name, folder in folders.items():
        if folder.removed or (dry_run and not folder.kept):
            gone.append(
                Removal(where=node, job_id=job_id, path=folder.path, bytes=folder.bytes)
            )
        if folder.kept:
            reason = f"{node}: {name}: {folder.kept}"
            stays.append(Stay(job_id=job_id, reason=reason))
    if gone and not dry_run:
        try:
            if len(gone) == len(folders):
                state = job.experiment.state()
                cleaned = tuple(dict.fromkeys([*state.cleaned, node]))
                changed = msgspec.structs.replace(state, cleaned=cleaned)
                job.experiment.save_state(changed)
            _add_event(job, gone, node)
        except OSError as error:
            # Harmless: the next `clean` finds no folder there.
            stays.append(_trouble(job, error))
    return gone


def _trouble(job: _FinishedJob, error: OSError) -> Stay:
    reason = f"{error.filename or job.experiment.folder}: {error.strerror}"
    return Stay(job_id=job.experiment.job_id, reason=reason)


def _add_event(
    job: _FinishedJob, gone: Sequence[Removal], node: str | None = None
) -> None:
    freed = sum(removal.bytes for removal in gone) / (1 << 20)
    removed = "its folder there"
    if node is None:
        removed = ", ".join(Path(removal.path).name for removal in gone)
    message = f"inv clean removed {removed} ({freed:.1f} MiB)"
    job.experiment.add_event(Event(time=time.time(), node=node, message=message))


# ---- on this machine ----


def _resumed_from(experiments: Experiments) -> set[tuple[str, str]]:
    """Return each (job id, checkpoint) from which an unfinished job resumes."""
    found = set()
    for experiment in experiments.unfinished():
        resume = experiment.record().resume
        if resume:
            found.add((resume.job_id, resume.checkpoint))
    return found


def _clean_here(
    job: _FinishedJob, needed: set[tuple[str, str]], *, dry_run: bool
) -> list[Removal]:
    experiment = job.experiment
    checkpoints = experiment.outputs.all_checkpoints()
    kept = _worth_keeping(experiment, checkpoints)
    old = {
        name: parts
        for name, parts in checkpoints.items()
        if name not in kept and (experiment.job_id, name) not in needed
    }
    if old and not dry_run:
        # Before they go: a half of one that stays is missed by nobody.
        _note_removed(experiment, old)
    gone = []
    for name, parts in old.items():
        size = checkpoint_bytes(experiment, name, parts)
        if not dry_run:
            _remove_checkpoint(experiment, name, parts)
        path = experiment.outputs.checkpoints(0).path / name
        gone.append(_removal_here(job, path, size))
    for folder in _partial_folders(experiment):
        # Left by transfers that broke off.
        size = folder.size(PARTIAL_FOLDER)
        if not dry_run:
            folder.remove(PARTIAL_FOLDER)
        gone.append(_removal_here(job, folder.path / PARTIAL_FOLDER, size))
    if gone and not dry_run:
        _add_event(job, gone)
    return gone


def _removal_here(job: _FinishedJob, path: Path, size: int) -> Removal:
    return Removal(where=HOME, job_id=job.experiment.job_id, path=str(path), bytes=size)


def _worth_keeping(
    experiment: Experiment, checkpoints: Mapping[str, Mapping[int, Entry]]
) -> set[str]:
    """Return the names of the checkpoints to keep.

    These are the newest whole one, the one with the lowest eval_loss, and the newest without a
    manifest.
    """
    whole = [
        checkpoint
        for checkpoint in fetched_checkpoints(experiment)
        if not checkpoint.missing
    ]
    kept: set[str] = set()
    if whole:
        kept.add(whole[-1].name)
    points = measure(experiment.metrics).evaluation
    losses = {point.step: point.value for point in points}
    evaluated = [checkpoint for checkpoint in whole if checkpoint.step in losses]
    if evaluated:
        best = min(evaluated, key=lambda checkpoint: losses[checkpoint.step])
        kept.add(best.name)
    with_manifest = checkpoints_with_manifest(experiment)
    times: dict[float, str] = {}
    for name, parts in checkpoints.items():
        if name not in with_manifest:
            times[max(part.facts.st_mtime for part in parts.values())] = name
    if times:
        kept.add(times[max(times)])
    return kept


def _remove_checkpoint(
    experiment: Experiment, name: str, parts: Mapping[int, Entry]
) -> None:
    # The manifests first, so that a half-removed checkpoint does not count as one.
    for rank in experiment.outputs.ranks():
        experiment.outputs.manifest(rank, name).remove()
    for rank in parts:
        experiment.outputs.checkpoints(rank).remove(name)


def _note_removed(experiment: Experiment, names: Iterable[str]) -> None:
    state = experiment.state()
    removed = tuple(dict.fromkeys([*state.removed_checkpoints, *names]))
    experiment.save_state(msgspec.structs.replace(state, removed_checkpoints=removed))


def _partial_folders(experiment: Experiment) -> Iterator[Folder]:
    """Yield the folders of a job's outputs with a folder of partial files in them."""
    waiting = [experiment.outputs.of(rank) for rank in experiment.outputs.ranks()]
    while waiting:
        folder = waiting.pop()
        for entry in folder.entries():
            if entry.is_folder and entry.name == PARTIAL_FOLDER:
                yield folder
            elif entry.is_folder:
                waiting.append(folder.folder(entry.name))
