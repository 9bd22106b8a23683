"""The gate before an attempt, as a pure step: only nodes in reach, fit and free take part.

Before the first attempt, late environments are rebuilt. Before a restart, missing nodes are waited for, and after a
while left behind. `loop.py` runs the step, `backend.py` carries out its acts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

import msgspec
from msgspec import Struct

from ...cluster.model import Cluster
from ...errors import NotFit, UgroError
from ...health.report import ClusterHealth
from ...hosts.retry import retry_pause
from ...jobs.outcome import Outcome
from ...jobs.phase import Phase
from ...jobs.plan import LaunchPlan
from ...jobs.record import JobRecord
from ...training.batch_sizes import refusals
from .loop import Begin, Common, Say, StopAsked, Tick
from .plan import make_plan


class Look(Enum):
    """The question of the gate's present look at its nodes."""

    FIRST = "whether the job can begin"
    ENVIRONMENTS = "whether the environments are made"
    AGAIN = "whether the job can begin, with the environments made"
    BACK = "whether all nodes are back for a restart"
    WITHOUT = "whether a restart can go without those that are away"


class Admitted(Struct, frozen=True, kw_only=True):
    """The nodes for an attempt."""

    nodes: tuple[str, ...]
    health: ClusterHealth
    left_behind: tuple[str, ...] = ()
    """The nodes that stayed away."""


class GateState(Struct, frozen=True, kw_only=True):
    """The knowledge of the gate."""

    record: JobRecord
    cluster: Cluster
    look: Look
    tries: int = 0
    """How often nodes were looked for in vain."""
    look_at: float | None = None
    """When they are looked for again, None while a look is under way."""
    deadline: float = 0.0
    """Until when nodes that are away are waited for, while others answer."""
    offline: bool = False
    """Whether no node has answered, which may be this machine's own fault."""
    gone: tuple[str, ...] = ()
    """The nodes that are not waited for any more."""
    stop_asked: bool = False
    result: Admitted | Outcome | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Name the nodes to look at."""
        everybody = (node.name for node in self.cluster.nodes)
        return tuple(name for name in everybody if name not in self.gone)


# ---- events and acts ----


class Probed(Struct, frozen=True):
    """The health of the nodes; `late` is {node: why its environment is behind}."""

    health: ClusterHealth
    late: Mapping[str, str] = {}


class EnvironmentsMade(Struct, frozen=True):
    """The environments are made, or could not be."""

    fault: UgroError | None = None


class Probe(Struct, frozen=True):
    """Look at these nodes; `Probed` brings their health."""

    nodes: tuple[str, ...]


class StopRemains(Struct, frozen=True):
    """Tell the rest of the attempt before to stop, then look at all nodes; `Probed` brings their health."""


class MakeEnvironments(Struct, frozen=True):
    """Make the environments of these nodes; `EnvironmentsMade` brings the result."""

    nodes: tuple[str, ...]


Event = Probed | EnvironmentsMade
Act = Probe | StopRemains | MakeEnvironments | Say
Result = tuple[GateState, list[Act]]


# ---- the step ----


def step(state: GateState, event: Event | Common, now: float) -> Result:
    """Give the state after an event, and the acts that follow; `result` is set at the end.

    Raises LaunchFailed if the nodes allow no plan.
    """
    match event:
        case Begin() if state.look is Look.FIRST:
            return state, [Probe(state.names)]
        case Begin():
            deadline = now + state.cluster.timeouts.return_seconds
            return msgspec.structs.replace(state, deadline=deadline), [StopRemains()]
        case Probed():
            return _probed(state, event, now)
        case EnvironmentsMade():
            return _made(state, event.fault)
        case StopAsked():
            return _stop_asked(state)
        case Tick() if state.look_at is not None and state.look_at <= now:
            return msgspec.structs.replace(state, look_at=None), [StopRemains()]
        case Tick():
            return state, []


def _probed(state: GateState, seen: Probed, now: float) -> Result:
    match state.look:
        case Look.BACK:
            return _looked_for_all(state, seen.health, now)
        case Look.WITHOUT:
            return _looked_at_those_left(state, seen.health, now)
        case Look.FIRST if seen.late and not seen.health.busy():
            return _make_environments(state, seen)
    return _over(state, _refusal(state, seen.health) or _admitted(state, seen.health))


def _stop_asked(state: GateState) -> Result:
    asked = msgspec.structs.replace(state, stop_asked=True)
    if state.look_at is None:
        # What is under way ends soon.
        return asked, []
    return _over(asked, Outcome.stopped("before it started again"))


# ---- the first attempt ----


def _make_environments(state: GateState, seen: Probed) -> Result:
    """Have late environments made, unless something else is wrong: making them takes minutes."""
    late = seen.late
    refused = _refusal(state, seen.health, late) or too_large(
        state.record, make_plan(state.record, state.cluster, seen.health.facts())
    )
    if refused:
        return _over(state, refused)
    said = [
        Say(f"environment: {why}; it is rebuilt", node) for node, why in late.items()
    ]
    return msgspec.structs.replace(state, look=Look.ENVIRONMENTS), [
        *said,
        MakeEnvironments(tuple(late)),
    ]


def _made(state: GateState, fault: UgroError | None) -> Result:
    if state.stop_asked:
        words = "while environments were made; what was in use stays in use"
        return _over(state, Outcome.stopped(words))
    if fault:
        outcome = Outcome(phase=Phase.REFUSED, error=fault, words=fault.text)
        return _over(state, outcome)
    return msgspec.structs.replace(state, look=Look.AGAIN), [Probe(state.names)]


def _refusal(
    state: GateState, health: ClusterHealth, late: Collection[str] = ()
) -> Outcome | None:
    if state.stop_asked:
        return Outcome.stopped("before it started")
    error = health.refusal(force=state.record.force, late=late)
    if error is None:
        return None
    return Outcome(phase=Phase.REFUSED, error=type(error), words=error.text)


def too_large(record: JobRecord, plan: LaunchPlan) -> Outcome | None:
    """Refuse a plan with a rank too large for its card; None if all fit."""
    found = [] if record.force else refusals(plan)
    if not found:
        return None
    return Outcome(phase=Phase.REFUSED, error=NotFit, words="\n".join(found))


# ---- a restart ----


def _looked_for_all(state: GateState, health: ClusterHealth, now: float) -> Result:
    away = _away(state, health)
    if not away:
        # A stop that was asked for is left to the start, which undoes what it has prepared.
        return _over(state, _admitted(state, health))
    if state.stop_asked:
        return _over(state, Outcome.stopped("before it started again"))
    if not _any_answers(state, health):
        return _wait_for_any(state, now)
    if now > state.deadline:
        return _go_without(state, away, health)
    said: list[Act] = []
    if state.tries == 0 or state.offline:
        limit = f"{state.cluster.timeouts.return_seconds:g}"
        said.append(Say(f"waiting for {', '.join(away)}, for {limit} s at most"))
    return _wait(msgspec.structs.replace(state, offline=False), now), said


def _wait_for_any(state: GateState, now: float) -> Result:
    """Wait for as long as no node answers: this machine may be the one that is offline."""
    said: list[Act] = []
    if not state.offline:
        said.append(Say("no node answers: is this machine offline? All are waited for"))
    deadline = now + state.cluster.timeouts.return_seconds
    return _wait(
        msgspec.structs.replace(state, offline=True, deadline=deadline), now
    ), said


def _wait(state: GateState, now: float) -> GateState:
    look_at = now + retry_pause(state.tries)
    return msgspec.structs.replace(state, tries=state.tries + 1, look_at=look_at)


def _any_answers(state: GateState, health: ClusterHealth) -> bool:
    """Return whether a node that is away can be told from a machine here that is offline.

    This machine's own answer says nothing, unless there is but one other to wait for.
    """
    local = {node.name for node in state.cluster.nodes if node.is_local}
    others = [node for node in health.nodes if node.node not in local]
    is_only_one = len(others) == 1 and len(health.nodes) > 1
    return not others or is_only_one or any(node.reachable for node in others)


def _looked_at_those_left(
    state: GateState, health: ClusterHealth, now: float
) -> Result:
    """Go on without the missing nodes, once the others are fit for their new ranks."""
    if not _any_answers(state, health):
        everybody = msgspec.structs.replace(state, look=Look.BACK, gone=())
        return _wait_for_any(everybody, now)
    away = _away(state, health)
    if away:
        return _go_without(state, away, health)
    words = f"going on without {', '.join(state.gone)}"
    admitted, acts = _over(state, _admitted(state, health))
    return admitted, [Say(words), *acts]


def _go_without(
    state: GateState, away: Collection[str], health: ClusterHealth
) -> Result:
    fewer = msgspec.structs.replace(state, look=Look.WITHOUT, gone=(*state.gone, *away))
    least = state.record.min_nodes or len(state.cluster.nodes)
    if len(fewer.names) < least:
        return _over(fewer, _not_back(fewer.gone, health))
    return fewer, [Probe(fewer.names)]


def _away(state: GateState, health: ClusterHealth) -> list[str]:
    """Name the nodes in the way of an attempt.

    Nodes out of reach or taken come first: other faults may only follow from their absence.
    """
    away = [node.node for node in health.nodes if not node.reachable or node.held_by]
    if away or state.record.force:
        return away
    return [node.node for node in health.nodes if not node.fit]


def _not_back(gone: Collection[str], health: ClusterHealth) -> Outcome:
    lines = [f"{', '.join(gone)} did not come back:"]
    for node, check in health.faults:
        if node in gone:
            lines.append(f"{node}: {check.name}: {check.value}")
    return Outcome(phase=Phase.FAILED, error=NotFit, words="\n".join(lines), final=True)


# ---- helpers ----


def _admitted(state: GateState, health: ClusterHealth) -> Admitted:
    return Admitted(nodes=state.names, health=health, left_behind=state.gone)


def _over(state: GateState, result: Admitted | Outcome) -> Result:
    return msgspec.structs.replace(state, result=result), []
