"""From a spec to a queued job: the command line's part of a launch."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .applog import open_log
from .cluster import Cluster, TrainingDefaults
from .errors import NodesBusy, RecordError, UsageError
from .experiments import Experiment, Experiments
from .job import Code, JobRecord, JobSpec, LaunchPlan
from .plan import make_plan
from .summon import ensure_agent
from .version import __version__

if TYPE_CHECKING:
    from .health import ClusterHealth


def submit(spec: JobSpec, cluster: Cluster) -> Experiment:
    """The job, queued, with an agent that will take it.

    Raises UsageError, RecordError, or NodesBusy where a job of this folder has one of the nodes.
    """
    experiments = Experiments(cluster.experiments)
    record = draft(spec, cluster)
    _refuse_if_taken(experiments, record)
    log = open_log("launcher", cluster)
    experiment = experiments.create(record, cluster.scripts)
    # Not the command line: its --env may hold secrets.
    asked = f"{spec.script}, model {spec.model}, data set {spec.dataset}, epochs {spec.epochs}"
    log.info("%s: %s, on %s", experiment.job_id, asked, ", ".join(record.nodes))
    if pid := ensure_agent(experiments):
        log.info("%s: started agent %d", experiment.job_id, pid)
    return experiment


def rehearse(spec: JobSpec, cluster: Cluster) -> tuple[ClusterHealth, LaunchPlan]:
    """What a launch would find and do now; nothing is written anywhere."""
    # A launch needs no SSH: that is the agent's part, and loading it takes longer than all the rest.
    from .health import examine
    from .hosts import Fleet

    record = draft(spec, cluster)
    with Fleet.of(cluster) as fleet:
        health = examine(fleet, cluster)
    if missing := [node.node for node in health.nodes if not node.reachable]:
        words = [
            f"{node}: {check.value}\n    {check.fix}" for node, check in health.faults if node in missing
        ]
        raise UsageError("no plan without a word from every node:\n" + "\n".join(words))
    return health, make_plan(record, cluster, health.facts())


def spec_from(defaults: TrainingDefaults, *, args: str | None, env: Sequence[str], **flags: Any) -> JobSpec:
    """The spec of a launch: flags where they were given, else the cluster file's defaults. Raises UsageError."""
    try:
        words = tuple(shlex.split(args or ""))
    except ValueError as error:
        raise UsageError(f"--args {args!r}: {error}; quote it as for a shell") from error
    if wrong := [pair for pair in env if "=" not in pair]:
        raise UsageError(f"--env {wrong[0]}: use KEY=VALUE")
    chosen = {
        name: getattr(defaults, name) if flag is None else flag
        for name, flag in flags.items()
        if name not in {"name", "force"}
    }
    variables = dict(pair.split("=", 1) for pair in env)
    return JobSpec(name=flags["name"], force=flags["force"], args=words, env=variables, **chosen)


def draft(spec: JobSpec, cluster: Cluster) -> JobRecord:
    """The record of a job that has no id yet. Raises UsageError for a spec that cannot be run."""
    spec.checked()
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
        force=spec.force,
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        nodes=tuple(node.name for node in cluster.nodes),
        code=Code(sha256="", git_commit=None),
        cluster=cluster.model_dump(mode="json"),
        ugro_version=__version__,
    )


def _refuse_if_taken(experiments: Experiments, record: JobRecord) -> None:
    addresses = _machines(record)
    for job in experiments.unfinished():
        try:
            taken = addresses & _machines(job.record())
        except RecordError:
            continue  # its state says that it runs, and no more can be known; the nodes' leases decide
        if taken:
            raise NodesBusy(
                f"{', '.join(sorted(name for name, _, _ in taken))}: held by job {job.job_id}, which is not finished; "
                f"wait for it (inv attach {job.job_id}) or end it (inv stop {job.job_id})"
            )


def _machines(record: JobRecord) -> set[tuple[str, str, str]]:
    return {(node["name"], node["address"], node["slot"]) for node in record.cluster["nodes"]}
