"""The speed of the network: a short job times an all-reduce with the real backend."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec

from ..cluster.local import shipped_scripts
from ..cluster.model import Cluster
from ..codec import decode_lines
from ..errors import JobFailed
from ..jobs.experiments import Experiments
from ..jobs.phase import Phase
from ..jobs.spec import JobSpec
from ..jobs.state import JobState
from ..jobs.watch import watch
from . import submit

SCRIPT = "measure_allreduce.py"


def measure(cluster: Cluster) -> list[dict[str, Any]]:
    """Run `scripts/measure_allreduce.py`; return its measurements. The job's folder is removed.

    Raises JobFailed if it fails; then the folder is kept for inspection.
    """
    scripts = cluster.scripts
    if not (scripts / SCRIPT).exists():
        scripts = shipped_scripts()
    spec = JobSpec(
        name="health-deep",
        script=SCRIPT,
        model="none",
        dataset="none",
        epochs=1,
        learning_rate=1.0,
    )
    experiment = submit.submit(spec, msgspec.structs.replace(cluster, scripts=scripts))
    state = JobState(phase=Phase.QUEUED)
    for item in watch(Experiments(cluster.experiments), experiment, ranks=[]):
        if isinstance(item, JobState):
            state = item
    if state.phase is not Phase.SUCCEEDED:
        cause = state.cause.message if state.cause else state.phase
        raise JobFailed(
            f"the all-reduce could not be timed: {cause}\n  see: inv logs {experiment.job_id}"
        )
    found = decode_lines(dict[str, Any], experiment.metrics.read())
    while experiment.folder.exists():  # the agent may still write into it
        shutil.rmtree(experiment.folder, ignore_errors=True)
    return found
