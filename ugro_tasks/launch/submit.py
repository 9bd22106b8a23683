"""Queuing a job."""

from __future__ import annotations

from ..cluster.model import Cluster
from ..errors import NodesBusy, RecordError
from ..jobs.agent_process import try_agent
from ..jobs.checkpoints import metrics_until
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.log import open_log
from ..jobs.spec import JobSpec
from .spec import draft


def submit(spec: JobSpec, cluster: Cluster) -> Experiment:
    """Queue a job and start an agent for it.

    Raises UsageError, RecordError, or NodesBusy if an unfinished job of this folder has a node.
    """
    experiments = Experiments(cluster.experiments)
    record = draft(spec, cluster)
    _refuse_if_taken(experiments, cluster)
    experiments.prepare_for_agent()
    log = open_log("launcher", cluster)
    metrics = b""
    if record.resume:
        before = Experiment(experiments.folder / record.resume.job_id)
        metrics = metrics_until(before, record.resume.step)
    experiment = experiments.create(record, cluster.scripts, metrics)
    # Not the whole command line, because --env may hold secrets.
    asked = f"{spec.script}, model {spec.model}, data set {spec.dataset}, epochs {spec.epochs}"
    log.info("%s: %s, on %s", experiment.job_id, asked, ", ".join(record.nodes))
    # No error: a command that follows the job tries again to start an agent.
    no_agent = try_agent(experiments)
    if no_agent:
        log.warning("%s: %s", experiment.job_id, no_agent)
    return experiment


def _refuse_if_taken(experiments: Experiments, cluster: Cluster) -> None:
    addresses = _machines(cluster)
    for job in experiments.unfinished():
        try:
            # Nodes proven free, while the job still waits for others.
            free = {rank.node for rank in job.state().ranks if rank.proven_gone}
            shared = addresses & _machines(job.cluster())
        except RecordError:
            continue  # its nodes are unknown; their leases will decide
        taken = sorted(name for name, _, _ in shared if name not in free)
        if taken:
            raise NodesBusy(
                f"{', '.join(taken)}: held by job {job.job_id}, which is not finished; "
                f"wait for it (inv attach {job.job_id}) or end it (inv stop {job.job_id})"
            )


def _machines(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {(node.name, node.address, node.slot) for node in cluster.nodes}
