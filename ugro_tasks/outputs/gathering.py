"""A job's outputs fetched as its user asks for it, also while it runs."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..jobs.experiment import Experiment


class Gathering(Struct, frozen=True, kw_only=True):
    """Where the outputs of a job are, or would come to."""

    job_id: str
    folder: str
    nodes: tuple[str, ...]  # whose outputs were fetched
    # Nodes on which `clean` has left nothing; what was there came home before.
    cleaned: tuple[str, ...]


def would_gather(experiment: Experiment) -> Gathering:
    """Return from where the outputs would be fetched, and fetch nothing."""
    return _gathering(experiment, experiment.state().cleaned)


def gather_outputs(
    experiment: Experiment, tell: Callable[[str, int], None], *, verify: bool
) -> Gathering:
    """Fetch the outputs; `tell` is told how far each node is, in percent. Raises as `gather_again` does."""
    from .fetch import gather_again  # late: it loads SSH

    return _gathering(experiment, tuple(gather_again(experiment, tell, verify=verify)))


def _gathering(experiment: Experiment, cleaned: tuple[str, ...]) -> Gathering:
    nodes = [node for node in experiment.record().nodes if node not in cleaned]
    return Gathering(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        nodes=tuple(nodes),
        cleaned=cleaned,
    )
