"""Whether what UGRO says of a job is so, held against what the nodes have, and against the faults that were done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.chaos.faults import KINDS
from tests.chaos.home import TIMEOUTS
from tests.chaos.nodes import Attempt
from tests.chaos.rounds import Hit, Played
from tests.chaos.versions import NEW_FIELD

OF_THE_CONTROLLER = {"home-disk-full", "home-read-only", "home-out-of-inodes"}
# Whoever follows a job by its path loses it with these, and is told so.
OUT_OF_SIGHT = {"folder-unmounted", "folder-moved"}
NO_RECORD = {4, 12}
NOT_GATHERED = 14
STOPPED = 130


def lies(played: Played, found: Mapping[str, list[Attempt]]) -> Iterator[str]:
    """Each thing that is not so. `found` is what each node has of the job, by its name."""
    if not played.job_id:
        yield from _no_job(played)
        return
    state, blame = played.state, list(_blame(played))
    phase, code = state["state"], state["exit_code"]
    last = state["attempts"][-1]["number"] if state["attempts"] else 1
    ends = {
        node: {attempt.number: attempt for attempt in attempts}
        for node, attempts in found.items()
    }
    if phase == "succeeded":
        ranks = {rank["node"]: rank["rank"] for rank in state["ranks"]}
        for node, rank in ranks.items():
            if not (played.plan.removes_streams and node == played.plan.harmed):
                yield from _not_well(node, rank, ends.get(node, {}).get(last))
        if code != 0 or state["cause"]:
            yield f"succeeded with exit code {code} and the cause {state['cause']}"
    elif phase == "stopped":
        resets = [hit for hit in played.hits if hit.fault.kind == "reset-under-job"]
        if not played.stopped_by and not resets:
            yield "stopped, and nobody asked for it"
        if state["reason"] not in {"asked", "reset"}:
            yield f"stopped for the reason {state['reason']}"
        # Where the disk takes no request, `inv stop` tells the nodes themselves.
        told_nodes = bool(played.stopped_by) and any(
            hit.fault.kind in OF_THE_CONTROLLER | OUT_OF_SIGHT for hit in played.hits
        )
        if state["reason"] == "reset" and not resets and not told_nodes:
            yield "stopped by a reset, and there was none"
        if code != STOPPED:
            yield f"stopped with exit code {code}"
    elif phase in {"failed", "refused"}:
        yield from _wrong_cause(played, blame)
    else:
        yield f"it ended {phase!r}, which is no end"
    yield from _wrong_attempts(played, blame)
    if played.stage.has_new_field and NEW_FIELD not in state:
        yield "what another version wrote into the record is lost"
    kinds = {hit.fault.kind for hit in played.hits}
    told_that_no_stop = (
        played.launch_code == 12
        and played.plan.goal == "ctrl-c"
        and kinds & OF_THE_CONTROLLER
    )
    # A success that is not home has an exit code of its own.
    not_home = played.launch_code == NOT_GATHERED and not state["gathered_at"]
    lost_sight = played.launch_code in NO_RECORD and kinds & OUT_OF_SIGHT
    watched = (
        played.launch_code is not None
        and played.plan.way != "detach"
        and not told_that_no_stop
        and not lost_sight
        and not not_home
    )
    if watched and phase == "succeeded" and not state["gathered_at"]:
        yield f"the launch ended with {played.launch_code}, and not all of it is here"
    if watched and played.launch_code != code:
        yield f"the launch ended with {played.launch_code}, the record says {code}"


def _no_job(played: Played) -> Iterator[str]:
    early = {hit.fault.kind for hit in played.hits if not hit.ran}
    if early & {"launch-killed", "terminal-closed"}:
        return
    if played.launch_code == 12 and early & OF_THE_CONTROLLER:
        return
    yield f"no job, exit code {played.launch_code}: {played.launch_said[-500:]}"


def _blame(played: Played) -> Iterator[Hit]:
    """The faults that may be why it did not succeed."""
    for hit in played.hits:
        kind = KINDS[hit.fault.kind]
        away = (
            played.plan.restarts
            and kind.lasts
            and kind.on_node
            and hit.fault.seconds > 3
        )
        # A restart is a launch: it is refused while a clock is wrong.
        clock = played.plan.restarts and hit.fault.kind == "clock-stepped"
        early = kind.hinders and not hit.ran
        if kind.deadly or early or clock or (away and kind.hinders):
            yield hit


def _not_well(node: str, rank: int, attempt: Attempt | None) -> Iterator[str]:
    if attempt is None:
        yield f"succeeded, but {node} has no folder of its last attempt"
    elif f"rank {rank} ends well\n".encode() not in attempt.log:
        yield f"succeeded, but rank {rank} on {node} did not come to its end"
    elif not attempt.exit or attempt.exit["code"] != 0:
        yield f"succeeded, but rank {rank} on {node} ended with {attempt.exit}"


def _wrong_cause(played: Played, blame: list[Hit]) -> Iterator[str]:
    state, plan = played.state, played.plan
    cause = state["cause"]
    if not cause:
        yield f"{state['state']} without a cause"
        return
    words = f"{cause['message']} {cause['node'] or ''}"
    culprits = {hit.where for hit in blame}
    if plan.goal == "fail":
        culprits.add(f"lab{plan.nodes[plan.fail_rank]}")
    if plan.harmed:
        culprits.add(plan.harmed)
    if (
        "second-controller" in {hit.fault.kind for hit in blame}
        and state["exit_code"] == 6
    ):
        return
    if OF_THE_CONTROLLER & {hit.fault.kind for hit in blame}:
        return
    if not culprits:
        yield f"{state['state']}, and nothing was done that could be why: {words}"
    elif not any(name in words for name in culprits):
        yield f"{state['state']}, and the cause names none of {sorted(culprits)}: {words}"
    elif state["state"] == "refused" and blame and all(hit.ran for hit in blame):
        yield f"refused although it ran: {words}"


def _wrong_attempts(played: Played, blame: list[Hit]) -> Iterator[str]:
    plan, state = played.plan, played.state
    attempts = state["attempts"]
    if len(attempts) > 1 + plan.restarts:
        yield f"{len(attempts)} attempts, {plan.restarts} restarts were allowed"
    if any(attempt["ended_at"] is None for attempt in attempts):
        yield "an attempt without an end in a job that has ended"
    # A hostile rank turns on itself in each attempt.
    reasons = len(blame) + (plan.goal == "fail") + 2 * bool(plan.harmed)
    # Who has asked for a stop gets no restart, nor has one who is away for longer than a restart waits.
    stayed_away = any(
        KINDS[hit.fault.kind].lasts and hit.fault.seconds > TIMEOUTS["return_seconds"]
        for hit in blame
    )
    restartable = (
        plan.restarts and reasons <= 1 and not played.stopped_by and not stayed_away
    )
    if restartable and all(hit.ran for hit in blame) and state["state"] == "failed":
        yield f"failed although it could have been restarted: {state['cause']}"


def lies_of_second(played: Played) -> Iterator[str]:
    """The same of the other controller's launch."""
    stage, code = played.stage, played.second_code
    if stage.second is None:
        return
    state = stage.other.state(stage.second_name)
    early = played.kinds
    allowed = {0, 6}
    if len(early) > 1:  # something else is broken as well
        allowed |= {5, 7, 8, 9}
    if "reset-under-job" in early:
        allowed |= {STOPPED}
    if code not in allowed:
        yield f"the second launch ended with {code}: {played.second_said[-800:]}"
    if (
        code == 6
        and any(job.job_id for job in played.jobs)
        and not any(job.job_id in played.second_said for job in played.jobs)
        and "held by" not in played.second_said
    ):
        yield f"the second launch was refused and not told by whom: {played.second_said[-500:]}"
    if code == 0 and state.get("state") != "succeeded":
        yield f"the second launch ended with 0, its record says {state.get('state')}"
