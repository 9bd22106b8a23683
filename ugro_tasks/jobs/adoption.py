"""Taking over a job that this user did not launch here: what it would run where, and its signature."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..cluster.model import Node
from ..errors import RecordError, UgroError
from .experiment import Experiment
from .phase import Phase
from .record import JobRecord
from .record_file import FORMAT


class AdoptedNode(Struct, frozen=True, kw_only=True):
    """A node of the job, as its record has it; nothing of this was proven."""

    name: str
    reached: str
    """`local`, or the word for SSH: user@address, port and jump host."""
    python: str
    """The program that runs UGRO's own there."""
    interpreter: str
    """The program that runs the training there."""
    project: str


class Adoption(Struct, frozen=True, kw_only=True):
    """What taking over a job means: the programs it would run, and where."""

    job_id: str
    folder: str
    state: Phase
    over: bool
    """Whether the job has ended, so that nothing is run but what its user asks for later."""
    nodes: list[AdoptedNode]
    record: JobRecord
    """All of it, as it will be signed."""


def would_adopt(experiment: Experiment) -> Adoption:
    """Return what the records of a job say, whoever wrote them.

    Raises RecordError if they make no sense, UgroError if the job is this user's already.
    """
    if experiment.is_signed():
        raise UgroError(f"{experiment.job_id} is yours already; nothing was changed")
    record = experiment.record()
    experiment.check_is_of(record)
    state = experiment.state()
    nodes = []
    for node in experiment.cluster_in(record).nodes:
        nodes.append(
            AdoptedNode(
                name=node.name,
                reached=_way_to(node),
                python=node.python,
                interpreter=node.environment.interpreter(node.project),
                project=node.project,
            )
        )
    return Adoption(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        state=state.phase,
        over=state.phase.finished,
        nodes=nodes,
        record=record,
    )


def _way_to(node: Node) -> str:
    if node.is_local:
        return "local"
    place = node.ssh or node.address
    way = f"{node.user}@{place}" if node.user else place
    if node.ssh_port is not None:
        way += f" port {node.ssh_port}"
    return f"{way} by way of {node.jump}" if node.jump else way


def adopt(experiment: Experiment, shown: Adoption) -> None:
    """Sign a job's record as this user's own, and bring its folder to the present format.

    Raises RecordError, also if the record is no longer the one that was shown.
    """
    try:
        experiment.adopt(shown.record)
        experiment.outputs.upgrade()
        state = experiment.state()
        newest = max(state.format, FORMAT)
        experiment.save_state(msgspec.structs.replace(state, format=newest))
    except OSError as error:
        raise RecordError(f"{error.filename}: {error.strerror}") from error
