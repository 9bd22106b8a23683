"""From a spec to a queued job: the command line's part of a launch."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from .applog import open_log
from .checkpoints import metrics_until, resume_from
from .cluster import Cluster
from .errors import NodesBusy, NotFit, RecordError, UsageError
from .experiments import Experiment, Experiments
from .job import Code, JobRecord, JobSpec, LaunchPlan
from .plan import make_plan
from .settings import resolve
from .shares import model_to_look_for, requested_sizes
from .summon import try_agent
from .version import __version__


def submit(spec: JobSpec, cluster: Cluster) -> Experiment:
    """The job, queued, with an agent that will take it.

    Raises UsageError, RecordError, or NodesBusy where a job of this folder has one of the nodes.
    """
    experiments = Experiments(cluster.experiments)
    record = draft(spec, cluster)
    _refuse_if_taken(experiments, cluster)
    log = open_log("launcher", cluster)
    before = record.resume and Experiment(experiments.folder / record.resume.job_id)
    metrics = metrics_until(before, record.resume.step) if before and record.resume else b""
    experiment = experiments.create(record, cluster.scripts, metrics)
    # Not the command line: its --env may hold secrets.
    asked = f"{spec.script}, model {spec.model}, data set {spec.dataset}, epochs {spec.epochs}"
    log.info("%s: %s, on %s", experiment.job_id, asked, ", ".join(record.nodes))
    # The job is there: whoever follows it goes on trying where no agent can be started in this moment.
    if why := try_agent(experiments):
        log.warning("%s: %s", experiment.job_id, why)
    return experiment


class Rehearsal(Struct, frozen=True, kw_only=True):
    """What a launch would do now."""

    plan: LaunchPlan
    environments: dict[str, str]  # {node: why its environment would be made anew first}
    refusals: list[str]  # why it would be refused


def rehearse(spec: JobSpec, cluster: Cluster) -> Rehearsal:
    """What a launch would find and do now; nothing is written anywhere. Raises NotFit where a node cannot be asked."""
    # A launch needs no SSH: that is the agent's part, and loading it takes longer than all the rest.
    from .environments import behind
    from .health import examine
    from .hosts import Fleet
    from .shares import refusals

    record = draft(spec, cluster)
    with Fleet.of(cluster) as fleet:
        health = examine(fleet, cluster, model=model_to_look_for(record))
    if missing := [node.node for node in health.nodes if not node.reachable]:
        words = [
            f"{node}: {check.value}\n    {check.fix}" for node, check in health.faults if node in missing
        ]
        raise NotFit("no plan without a word from every node:\n" + "\n".join(words))
    plan = make_plan(record, cluster, health.facts(), resume=record.resume)
    late = behind(cluster, health.facts()) if spec.sync else {}
    refused = health.refusal(force=spec.force, late=late)
    too_large = [] if spec.force else refusals(plan)
    return Rehearsal(
        plan=plan, environments=late, refusals=[*([refused.text] if refused else []), *too_large]
    )


def spec_from(
    cluster: Cluster,
    *,
    name: str | None,
    resume: str | None,
    script: str | None,
    args: str | None,
    env: Sequence[str],
    sets: Sequence[str],
    flags: Mapping[str, Any],
    **more: Any,
) -> JobSpec:
    """The spec of a launch: what flags say; else what the job to resume had; else the cluster file's defaults.

    `flags` are those that `resolve` knows, None where one was not given; `more` goes into the spec as it is. Raises
    UsageError, and JobNotFound for a job to resume.
    """
    try:
        words = None if args is None else tuple(shlex.split(args))
    except ValueError as error:
        raise UsageError(f"--args {args!r}: {error}; quote it as for a shell") from error
    if wrong := [pair for pair in env if "=" not in pair]:
        raise UsageError(f"--env {wrong[0]}: use KEY=VALUE")
    variables = dict(pair.split("=", 1) for pair in env)
    source = Experiments(cluster.experiments).find(resume) if resume else None
    before = source.record() if source else None
    settings = resolve(cluster, sets=sets, base=before.settings if before else None, **flags)
    return JobSpec(
        name=name or (before.job_name if before else ""),
        script=script or (before or cluster.training).script,
        model=settings["model"]["name"],
        dataset=settings["dataset"]["name"],
        epochs=settings["training"]["num_epochs"],
        learning_rate=settings["training"]["learning_rate"],
        args=(before.args if before else ()) if words is None else words,
        env={**(before.env if before else {}), **variables},
        settings=settings,
        resume=resume_from(source) if source else None,
        **more,
    )


def draft(spec: JobSpec, cluster: Cluster) -> JobRecord:
    """The record of a job that has no id yet. Raises UsageError for a spec that cannot be run."""
    spec.checked()
    requested_sizes(cluster, spec.settings)
    if spec.min_nodes is not None and not 1 <= spec.min_nodes <= len(cluster.nodes):
        raise UsageError(
            f"--min-nodes {spec.min_nodes}: use a number from 1 to {len(cluster.nodes)}, of the nodes"
        )
    if not (cluster.scripts / spec.script).is_file():
        known = ", ".join(sorted(path.name for path in cluster.scripts.glob("*.py")))
        raise UsageError(f"--script {spec.script}: not in {cluster.scripts}; there is {known or 'no script'}")
    return JobRecord(
        job_id=f"{spec.name}_<time>",
        nonce=secrets.token_hex(4),
        job_name=spec.name,
        model=spec.model,
        dataset=spec.dataset,
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        script=spec.script,
        args=spec.args,
        env=spec.env,
        settings=spec.settings,
        force=spec.force,
        sync=spec.sync,
        max_restarts=spec.max_restarts,
        min_nodes=spec.min_nodes,
        resume=spec.resume,
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        nodes=tuple(node.name for node in cluster.nodes),
        code=Code(sha256="", git_commit=None),
        cluster=cluster.as_json(),
        ugro_version=__version__,
    )


def _refuse_if_taken(experiments: Experiments, cluster: Cluster) -> None:
    addresses = _machines(cluster)
    for job in experiments.unfinished():
        try:
            free = {rank.node for rank in job.state().ranks if rank.proven_gone}  # while it waits for others
            taken = {machine for machine in addresses & _machines(job.cluster()) if machine[0] not in free}
        except RecordError:
            continue  # its state says that it runs, and no more can be known; the nodes' leases decide
        if taken:
            raise NodesBusy(
                f"{', '.join(sorted(name for name, _, _ in taken))}: held by job {job.job_id}, which is not finished; "
                f"wait for it (inv attach {job.job_id}) or end it (inv stop {job.job_id})"
            )


def _machines(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {(node.name, node.address, node.slot) for node in cluster.nodes}
