"""What the ranks wrote comes home, by rsync."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence

from .errors import RecordError, UgroError
from .experiments import METRICS_NAME, OWN_NAMES, Experiment
from .hosts import Fleet, Host
from .job import NodePlan
from .rsync import Rsync


def gather(
    experiment: Experiment,
    plans: Sequence[NodePlan],
    fleet: Fleet,
    *,
    only: Collection[str] | None = None,
    clashing: Collection[str] = OWN_NAMES,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Pull each rank's output folder, all nodes at once; gives what went wrong, [] if nothing did.

    What rank 0 wrote under a name of UGRO's own (`clashing`: what there may be of it) goes to ranks/0/. `progress` is
    told (node, percent). What arrived before a failure stays and is not pulled again.
    """
    by_node = {plan.node: plan for plan in plans if only is None or plan.node in only}
    telling = threading.Lock()

    def pull(host: Host) -> UgroError | None:
        plan = by_node.get(host.node.name)
        if plan is None:
            return None

        def tell(percent: int) -> None:
            with telling:
                if progress:
                    progress(plan.node, percent)

        try:
            _pull(experiment, plan, Rsync(host), clashing, tell)
        except UgroError as error:
            return error
        except OSError as error:
            return RecordError(f"{error.filename or experiment.folder}: {error.strerror}")
        return None

    return [error for error in fleet.map(pull).values() if error]


def _pull(
    experiment: Experiment,
    plan: NodePlan,
    rsync: Rsync,
    clashing: Collection[str],
    tell: Callable[[int], None],
) -> None:
    source = f"{plan.folder}/output/"
    target = experiment.outputs(plan.rank)
    target.mkdir(parents=True, exist_ok=True)
    # metrics.jsonl came as a stream already, and is still being written where the job runs.
    own = OWN_NAMES if plan.rank == 0 else [METRICS_NAME]
    rsync.pull(source, f"{target}/", exclude=[f"/{name}" for name in own], progress=tell)
    if plan.rank == 0 and (
        aside := [name for name in clashing if name in OWN_NAMES and name != METRICS_NAME]
    ):
        target = experiment.folder / "ranks" / "0"
        target.mkdir(parents=True, exist_ok=True)
        rsync.pull(source, f"{target}/", only=[f"/{name}" for name in aside])
    with contextlib.suppress(OSError):
        target.rmdir()  # of a rank that wrote nothing


def gather_again(experiment: Experiment, progress: Callable[[str, int], None]) -> None:
    """Pull the outputs of a job that runs or has ended; raises what went wrong, RecordError where it never ran."""
    record = experiment.record()
    if record.plan is None:
        raise RecordError(f"{experiment.job_id} never ran, so there is nothing to gather")
    with Fleet.of(experiment.cluster()) as fleet:
        errors = gather(experiment, record.plan.nodes, fleet, progress=progress)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UgroError("\n".join(error.text for error in errors))
