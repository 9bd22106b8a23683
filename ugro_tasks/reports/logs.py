"""The last lines of the ranks' logs."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..jobs.experiment import Experiment
from ..jobs.tail import end_of_lines, last_lines


def log_tails(
    experiment: Experiment,
    rank: int | None,
    count: int,
    ends: Mapping[int, int] | None = None,
) -> dict[int, list[str]]:
    """Return {rank: its last lines}, before the offsets `ends` if given; silent ranks are left out.

    Raises UsageError for a rank beyond the job's.
    """
    logs = experiment.logs()
    ranks = len(experiment.record().nodes)
    if rank is not None and not 0 <= rank < ranks:
        raise UsageError(
            f"--rank {rank}: {experiment.job_id} has the ranks 0 to {ranks - 1}"
        )
    tails = {}
    for number, log in logs.items():
        if rank is None or rank == number:
            end = ends.get(number) if ends else None
            tails[number] = last_lines(log, count, end)
    return tails


def log_ends(experiment: Experiment) -> dict[int, int]:
    """Return {rank: bytes of its log that are whole lines}."""
    return {number: end_of_lines(log) for number, log in experiment.logs().items()}
