"""Taking over a job that this user did not launch here: what it would run where, and its signature."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import RecordError, UgroError
from .experiment import Experiment
from .phase import Phase
from .record_file import FORMAT


class AdoptedNode(Struct, frozen=True, kw_only=True):
    """A node of the job, as its record has it; nothing of this was proven."""

    name: str
    reached: str
    """`local`, or the word for SSH: user@address, port and jump host."""
    python: str
    project: str
    command: tuple[str, ...] = ()
    """The last attempt's; empty if there was none."""


class Adoption(Struct, frozen=True, kw_only=True):
    """What taking over a job means: the programs it would run, and where."""

    job_id: str
    folder: str
    state: Phase
    ends_at_once: bool
    """Whether the job is over, so that nothing is run but what its user asks for later."""
    script: str
    code_sha256: str
    nodes: list[AdoptedNode]


def would_adopt(experiment: Experiment) -> Adoption:
    """Return what the records of a job say, whoever wrote them.

    Raises RecordError if they make no sense, UgroError if the job is this user's already.
    """
    if experiment.is_signed():
        raise UgroError(f"{experiment.job_id} is yours already; nothing was changed")
    record = experiment.record()
    state = experiment.state()
    if record.job_id != experiment.job_id:
        raise RecordError(
            f"{experiment.folder}: the record of another job, {record.job_id}; give the folder that name back"
        )
    try:
        cluster = Cluster.from_json(record.cluster)
    except ValueError as error:
        raise RecordError(
            f"{experiment.job_id}: its cluster is none that this UGRO knows: {error}"
        ) from error
    plans = record.plan.nodes if record.plan else ()
    commands = {plan.node: plan.argv for plan in plans}
    nodes = []
    for node in cluster.nodes:
        nodes.append(
            AdoptedNode(
                name=node.name,
                reached=_way_to(node),
                python=node.python,
                project=node.project,
                command=commands.get(node.name, ()),
            )
        )
    return Adoption(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        state=state.phase,
        ends_at_once=state.phase.finished,
        script=record.script,
        code_sha256=record.code.sha256,
        nodes=nodes,
    )


def _way_to(node: Node) -> str:
    if node.transport == "local":
        return "local"
    way = f"{node.user}@{node.address}" if node.user else node.address
    if node.ssh_port is not None:
        way += f" port {node.ssh_port}"
    return f"{way} by way of {node.jump}" if node.jump else way


def adopt(experiment: Experiment) -> None:
    """Sign a job's record as this user's own, and bring its folder to the present format.

    Raises RecordError.
    """
    try:
        experiment.outputs.upgrade()
        state = experiment.state()
        newest = max(state.format, FORMAT)
        experiment.save_state(msgspec.structs.replace(state, format=newest))
        experiment.adopt()
    except OSError as error:
        raise RecordError(f"{error.filename}: {error.strerror}") from error
