"""What the ranks wrote comes home, by rsync."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence

from .cluster import Cluster
from .errors import RecordError, UgroError
from .experiments import Experiment
from .hosts import Fleet, Host
from .job import NodePlan
from .rsync import Rsync


def gather(
    experiment: Experiment,
    plans: Sequence[NodePlan],
    fleet: Fleet,
    *,
    only: Collection[str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Pull each rank's output folder, all nodes at once; gives what went wrong, [] if nothing did.

    `progress` is told (node, percent). What arrived before a failure stays and is not pulled again.
    """
    by_node = {plan.node: plan for plan in plans if only is None or plan.node in only}
    telling = threading.Lock()

    def pull(host: Host) -> UgroError | None:
        plan = by_node.get(host.node.name)
        if plan is None:
            return None
        target = experiment.outputs(plan.rank)
        target.mkdir(parents=True, exist_ok=True)

        def tell(percent: int) -> None:
            with telling:
                if progress:
                    progress(plan.node, percent)

        try:
            # metrics.jsonl came as a stream already, and is still being written to where the job runs.
            Rsync(host).pull(
                rsync_path(plan.folder) + "/output/", f"{target}/", exclude=["/metrics.jsonl"], progress=tell
            )
        except UgroError as error:
            return error
        with contextlib.suppress(OSError):
            target.rmdir()  # of a rank that wrote nothing
        return None

    return [error for error in fleet.map(pull).values() if error]


def rsync_path(folder: str) -> str:
    """A folder on a node as rsync takes it: relative to the remote home, where a login begins."""
    return folder.removeprefix("~/")


def gather_again(experiment: Experiment, progress: Callable[[str, int], None]) -> None:
    """Pull the outputs of a job that runs or has ended; raises what went wrong, RecordError where it never ran."""
    record = experiment.record()
    if record.plan is None:
        raise RecordError(f"{experiment.job_id} never ran, so there is nothing to gather")
    with Fleet.of(Cluster.model_validate(record.cluster)) as fleet:
        errors = gather(experiment, record.plan.nodes, fleet, progress=progress)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UgroError("\n".join(error.text for error in errors))
