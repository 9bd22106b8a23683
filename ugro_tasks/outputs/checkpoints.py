"""Transfer of checkpoints: fetched from the nodes as they appear, pushed to nodes that resume."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from ..errors import NodeFault, RecordError, UgroError
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.operations import MakeFolder, Manifests
from ..hosts.requests import ask
from ..hosts.transfer import Transfer
from ..jobs.checkpoints import (
    Checkpoint,
    CheckpointFile,
    Manifest,
    fetched_checkpoints,
    find_damage,
    own_files,
    read_manifest,
    stored_manifests,
)
from ..jobs.experiment import Experiment
from ..jobs.plan import NodePlan
from ..jobs.spec import Resume

MANIFESTS_MOST = 200  # queued for one rank
FAULTS_TOLD = 100


class Mirror:
    """Fetches the checkpoints of one attempt in a thread of its own."""

    def __init__(
        self, experiment: Experiment, hosts: Mapping[str, Host], log: logging.Logger
    ) -> None:
        self.experiment = experiment
        self.hosts = hosts
        self.log = log
        self._asked: queue.SimpleQueue[tuple[NodePlan, bytes] | None] = (
            queue.SimpleQueue()
        )
        # By rank and checkpoint.
        self._waiting: dict[int, tuple[NodePlan, dict[str, Manifest]]] = {}
        self._faults = 0
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def take(self, plan: NodePlan, content: bytes) -> None:
        """Queue a checkpoint reported whole by a node; with too many queued, the end fetches it."""
        if self._asked.qsize() < MANIFESTS_MOST:
            self._asked.put((plan, content))

    def end(self) -> None:
        """Fetch nothing more; a transfer that is under way goes on."""
        self._asked.put(None)

    def wait(self) -> None:
        """Wait for the transfer that is under way, after `end`."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            told = [self._asked.get()]
            while (
                not self._asked.empty()
            ):  # those that came meanwhile are fetched together
                told.append(self._asked.get())
            if None in told:
                # Whoever fetches everything does not need to be waited for.
                return
            for plan, content in filter(None, told):
                self._quietly(self._note, plan, content)
            self._fetch_ready()

    def _note(self, plan: NodePlan, content: bytes) -> None:
        manifest = _checked(plan, content)
        _, waiting = self._waiting.setdefault(plan.rank, (plan, {}))
        if len(waiting) < MANIFESTS_MOST:
            waiting[manifest.checkpoint] = manifest

    def _fetch_ready(self) -> None:
        """Fetch every checkpoint with rank 0's manifest here, without files equal to rank 0's."""
        for rank, (plan, manifests) in sorted(self._waiting.items()):
            if not manifests:
                continue
            first = manifests if rank == 0 else stored_manifests(self.experiment, 0)
            ready = [manifest for name, manifest in manifests.items() if name in first]
            for manifest in ready:
                del manifests[manifest.checkpoint]
            self._quietly(
                fetch_checkpoints,
                self.experiment,
                self.hosts[plan.node],
                plan,
                ready,
                gently=True,
            )

    def _quietly(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Log an error instead of raising it; the fetch at the end tries again."""
        try:
            work(*args, **options)
        except (UgroError, OSError) as error:
            self._faults += 1
            if self._faults <= FAULTS_TOLD:
                self.log.warning(
                    "%s: a checkpoint has not come: %s", self.experiment.job_id, error
                )


def fetch_checkpoints(
    experiment: Experiment,
    host: Host,
    plan: NodePlan,
    manifests: Sequence[Manifest],
    *,
    gently: bool = False,
    verify: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch the checkpoint files of one rank that are missing here.

    `gently` gives the training precedence on the node's processors, `verify` also reads the files
    already here, `progress` gets the percentage. Raises HostError, or OSError if the disk here is
    full; files fetched before an error are kept.
    """
    if not manifests:
        return
    known = stored_manifests(experiment, plan.rank)
    if plan.rank == 0:
        first = known | {manifest.checkpoint: manifest for manifest in manifests}
    else:
        first = stored_manifests(experiment, 0)
    own: dict[str, dict[str, CheckpointFile]] = {}
    for manifest in manifests:
        name = manifest.checkpoint
        own[name] = manifest.files
        if name in first:
            own[name] = own_files(manifest, first[name])

    def damage(manifest: Manifest, *, read: bool) -> str | None:
        files = own[manifest.checkpoint]
        return find_damage(experiment, manifest.rank, files, read=read)

    missing = []
    for manifest in manifests:
        is_new = known.get(manifest.checkpoint) != manifest
        if is_new or damage(manifest, read=verify):
            missing.append(manifest)
    if not missing:
        return
    outputs = experiment.outputs
    outputs.make(plan.rank)
    folder = outputs.checkpoints(plan.rank)
    folder.make()
    for manifest in missing:  # without its manifest a checkpoint is not whole
        outputs.manifest(plan.rank, manifest.checkpoint).remove()
    fault: UgroError | None = None
    files: list[str] = []
    for manifest in missing:
        files += own[manifest.checkpoint]
    if files:
        source = f"{plan.folder}/output/checkpoints/"
        try:
            Transfer(host).pull(
                source,
                f"{folder.place}/",
                files=sorted(files),
                follow_links=True,
                gently=gently,
                verify=verify,
                progress=progress,
            )
        except NodeFault as error:  # the script may have removed one meanwhile
            fault = error
    for manifest in missing:
        found = damage(manifest, read=True)
        if found:
            words = f"{manifest.checkpoint}: {found}"
            fault = fault or NodeFault(plan.node, words, "later: inv gather")
            continue
        stored = outputs.manifest(plan.rank, manifest.checkpoint)
        stored.parent.make()
        stored.replace(msgspec.json.encode(manifest))
    outputs.link_for_people()
    if fault:
        raise fault


def bring_all(
    experiment: Experiment,
    plans: Sequence[NodePlan],
    fleet: Fleet,
    *,
    only_new: bool = False,
    verify: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Fetch the checkpoint files of all these nodes that are missing here; return the errors.

    See `fetch_checkpoints`; with `only_new`, checkpoints of which there is one here are left alone,
    and `progress` gets the name of the transfer as well.
    """
    errors: list[UgroError] = []

    def manifests(plan: NodePlan, host: Host) -> list[Manifest]:
        found = []
        for content in ask(host, Manifests(folder=plan.folder)).manifests:
            try:
                found.append(_checked(plan, content.encode()))
            except NodeFault as error:
                errors.append(error)  # the other manifests are still good
        return found

    hosts = {host.node.name: host for host in fleet}
    told = fleet.each({plan.node: partial(manifests, plan) for plan in plans})
    # Rank 0's first: equal files of other ranks are skipped.
    for plan in sorted(plans, key=lambda plan: plan.rank):
        found = told[plan.node]
        if isinstance(found, UgroError):
            errors.append(found)
            continue
        if only_new:
            here = stored_manifests(experiment, plan.rank)
            found = [manifest for manifest in found if manifest.checkpoint not in here]
        told_of = partial(progress, f"{plan.node} checkpoints") if progress else None
        try:
            fetch_checkpoints(
                experiment,
                hosts[plan.node],
                plan,
                found,
                verify=verify,
                progress=told_of,
            )
        except UgroError as error:
            errors.append(error)
        except OSError as error:
            path = error.filename or experiment.folder
            errors.append(RecordError(f"{path}: {error.strerror}"))
    return errors


def _checked(plan: NodePlan, content: bytes) -> Manifest:
    try:
        manifest = read_manifest(content)
    except ValueError as error:
        raise NodeFault(
            plan.node, f"a checkpoint's manifest is unusable: {error}"
        ) from error
    if manifest.rank != plan.rank:
        raise NodeFault(
            plan.node, f"rank {plan.rank} sent the manifest of rank {manifest.rank}"
        )
    return manifest


def deliver(
    source: Experiment,
    resume: Resume,
    host: Host,
    plan: NodePlan,
    link_from: Sequence[str] = (),
) -> None:
    """Push a checkpoint into the rank's `resume/` on its node: rank 0's files, then the rank's own.

    `link_from` are folders on the node, relative to `resume/`, that may hold the same files. Raises
    HostError or RecordError.
    """
    fetched = {
        checkpoint.name: checkpoint for checkpoint in fetched_checkpoints(source)
    }
    checkpoint = fetched.get(resume.checkpoint)
    if checkpoint is None or checkpoint.missing:
        why = checkpoint.missing if checkpoint else "its manifest is gone"
        raise RecordError(
            f"{source.folder}: {resume.checkpoint} cannot be taken out to the nodes: {why}"
        )
    target = f"{plan.folder}/resume/"
    ask(host, MakeFolder(project=target.rstrip("/")))
    first = checkpoint.manifests[0]
    transfer = Transfer(host)
    for rank, files in _layers(checkpoint, first, plan.rank):
        folder = source.outputs.checkpoints(rank)
        transfer.push(f"{folder.place}/", target, files=files, link_from=link_from)


def _layers(
    checkpoint: Checkpoint, first: Manifest, rank: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield (rank, its files to push): rank 0's without those replaced by the rank's own."""
    manifest = checkpoint.manifests.get(rank)
    own: dict[str, CheckpointFile] = {}
    if manifest and rank:
        own = own_files(manifest, first)
    yield 0, sorted(set(first.files) - set(own))
    if own:
        yield rank, sorted(own)
