"""Which nodes are missed, and whether this machine may be the reason. Pure, like `gang_step.py`.

A node is missed only while another one answers: where none does, the cable of this machine may be the one that is
out, and the ranks go on undisturbed. A rank that has ended is followed no longer, so its node is asked.
"""

from __future__ import annotations

import msgspec

from .gang import Act, GangState, Look, Member, Stage, Step
from .loop import Say


def judge(
    state: GangState, now: float, *, looked: bool | None = None
) -> tuple[GangState, list[Act]]:
    """Note since when nodes are missed, after any news of a connection; `looked` is what a `Look` has found."""
    if all(member.away_since is None for member in state.members):
        return _missing(state, None), []
    ended = _ended_elsewhere(state)
    if any(member.is_followed for member in state.members):
        return _missing(state, now), []
    if looked is None and ended:
        if state.looking:
            return state, []
        return msgspec.structs.replace(state, looking=True), [Look(ended)]
    if looked or _answers_for_itself(state):
        return _missing(state, now), []
    several = sum(not member.local for member in state.members) > 1
    words = "no node answers: is this machine offline? All are waited for, and their ranks go on"
    said: list[Act] = [Say(words)] if several and not state.offline else []
    return msgspec.structs.replace(_missing(state, None), offline=True), said


def is_missed_for(state: GangState, member: Member, now: float, seconds: float) -> bool:
    """Return whether a node is missed for longer than this."""
    since = member.missed_since
    if state.given_up:
        # Somebody knows better.
        since = member.away_since
    return since is not None and now - since > seconds


def may_be_offline(state: GangState, member: Member) -> bool:
    """Return whether no other node than one that cannot be told to stop answers, while its rank may run."""
    if _leaves_by_itself(state):
        return False
    others = [o for o in state.members if o is not member and not o.local]
    answered = [o for o in others if o.stop and o.stop.unreached is None]
    return bool(others) and not answered and not any(o.is_followed for o in others)


def _leaves_by_itself(state: GangState) -> bool:
    """Return whether no rank was told to start: what is only prepared ends by itself."""
    return state.stage is Stage.UNDOING and state.steps[0] is not Step.START


def _missing(state: GangState, since: float | None) -> GangState:
    """Count the absence of all nodes out of reach from `since` on, if it is not counted yet; None: not at all."""
    members = []
    for member in state.members:
        missed = None
        if member.away_since is not None and since is not None:
            missed = member.missed_since or since
        members.append(msgspec.structs.replace(member, missed_since=missed))
    return msgspec.structs.replace(state, members=tuple(members), offline=False)


def _ended_elsewhere(state: GangState) -> tuple[str, ...]:
    """Name the other machines that have answered to the end of their rank."""
    return tuple(
        member.node
        for member in state.members
        if member.exit
        and not (member.local or member.catching_up or member.exit.gave_up)
    )


def _answers_for_itself(state: GangState) -> bool:
    """Return whether there is no second machine to compare a missed one with, and waiting for it is in vain.

    A rank on this machine needs the network as well, and where only streams are missing, nothing runs.
    """
    others = [member for member in state.members if not member.local]
    is_alone = len(others) == 1
    return is_alone and (len(state.members) > 1 or others[0].catching_up)
