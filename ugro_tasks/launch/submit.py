"""From a spec to a queued job."""

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
    """The job, queued, with an agent that will take it.

    Raises UsageError, RecordError, or NodesBusy where a job of this folder has one of the nodes.
    """
    experiments = Experiments(cluster.experiments)
    record = draft(spec, cluster)
    _refuse_if_taken(experiments, cluster)
    log = open_log("launcher", cluster)
    before = record.resume and Experiment(experiments.folder / record.resume.job_id)
    metrics = (
        metrics_until(before, record.resume.step) if before and record.resume else b""
    )
    experiment = experiments.create(record, cluster.scripts, metrics)
    # Not the command line: its --env may hold secrets.
    asked = f"{spec.script}, model {spec.model}, data set {spec.dataset}, epochs {spec.epochs}"
    log.info("%s: %s, on %s", experiment.job_id, asked, ", ".join(record.nodes))
    # The job is there: whoever follows it goes on trying where no agent can be started in this moment.
    if why := try_agent(experiments):
        log.warning("%s: %s", experiment.job_id, why)
    return experiment


def _refuse_if_taken(experiments: Experiments, cluster: Cluster) -> None:
    addresses = _machines(cluster)
    for job in experiments.unfinished():
        try:
            # While it waits for others, these are free.
            free = {rank.node for rank in job.state().ranks if rank.proven_gone}
            taken = {
                machine
                for machine in addresses & _machines(job.cluster())
                if machine[0] not in free
            }
        except RecordError:
            continue  # its state says that it runs, and no more can be known; the nodes' leases decide
        if taken:
            raise NodesBusy(
                f"{', '.join(sorted(name for name, _, _ in taken))}: held by job {job.job_id}, which is not finished; "
                f"wait for it (inv attach {job.job_id}) or end it (inv stop {job.job_id})"
            )


def _machines(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {(node.name, node.address, node.slot) for node in cluster.nodes}
