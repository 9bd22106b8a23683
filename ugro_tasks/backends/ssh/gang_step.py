"""The rules of a gang, as a pure function: `step(state, event, now) -> state, acts`.

All ranks start or none does; the first failure stops the others; a node out of reach is tried again. Nothing here
waits, asks or writes: `gang_loop.py` carries out the acts and brings back their results as events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...errors import HostError, LaunchFailed, NodesBusy, StopUnproven
from ...hosts.retry import retry_pause
from ...jobs.outcome import Outcome, RankExit
from ...jobs.phase import Phase, Reason
from .gang import (
    Act,
    ChangePhase,
    ChangeRank,
    Connected,
    Disconnected,
    DoStep,
    Event,
    Exited,
    Follow,
    GangState,
    Looked,
    Member,
    NoteRan,
    NotStored,
    Stage,
    StepDone,
    StopTold,
    TellToStop,
    Trouble,
    trouble_of,
)
from .loop import Begin, Common, Say, StopAsked, Tick
from .reach import is_missed_for, judge, may_be_offline
from .stop import STOP_TRIES, StopOrder, StopResult

# A connection that broke sooner was none: the pause before the next try goes on growing.
STEADY_SECONDS = 10.0
# How often a node may say the same about why it cannot send the streams of a rank.
FAULTS_MOST = 5
# Until a disk here that takes nothing is tried again.
STORE_SECONDS = 5.0

Result = tuple[GangState, list[Act]]

# What is so of a member whose stream has ended.
_NOT_FOLLOWED: dict[str, Any] = {
    "in_touch": False,
    "away_since": None,
    "missed_since": None,
    "follow_at": None,
}


def step(state: GangState, event: Event | Common, now: float) -> Result:
    """Give the state after an event, and the acts that follow.

    Acts on nodes come before notes and words. Once the gang is over, an event changes nothing.
    """
    if state.stage is Stage.OVER:
        return state, []
    known, acts = _take(state, event, now)
    # Any event shows that time went by: where many come, no pause is longer than it is to be.
    later, more = _try_again(known, now)
    return later, [*acts, *more]


def _take(state: GangState, event: Event | Common, now: float) -> Result:
    match event:
        case Begin():
            return _begin(state, now)
        case StepDone():
            return _step_done(state, event)
        case Connected():
            return _connected(state, state.member(event.node), now)
        case Disconnected():
            return _disconnected(state, state.member(event.node), event, now)
        case Looked():
            return _looked(state, event, now)
        case Exited():
            return _exited(state, state.member(event.exit.node), event, now)
        case NotStored():
            words = f"what it sends cannot be stored here, and is fetched later: {event.words}"
            return state, [Say(words, event.node)]
        case StopTold():
            return _stop_told(state, state.member(event.node), event.result, now)
        case StopAsked():
            return _stop_asked(state, now, given_up=event.given_up)
        case Tick():
            return state, []


def _begin(state: GangState, now: float) -> Result:
    if state.stage is Stage.STARTING:
        return state, [DoStep(state.steps[0])]
    if state.stage is Stage.STOPPING:
        return _tell_all(state)
    return _follow(state, state.members, now)


# ---- the start ----


def _step_done(state: GangState, done: StepDone) -> Result:
    if done.faults or state.stop_asked:
        return _undo(state, done)
    left = state.steps[1:]
    if left:
        return msgspec.structs.replace(state, steps=left), [DoStep(left[0])]
    runs = [Say(f"rank {member.rank} runs", member.node) for member in state.members]
    begun = msgspec.structs.replace(state, steps=(), stage=Stage.RUNNING)
    return begun, [NoteRan(phase=Phase.RUNNING), *runs]


def _undo(state: GangState, done: StepDone) -> Result:
    undoing = msgspec.structs.replace(
        state,
        stage=Stage.UNDOING,
        faults=done.faults,
        order=StopOrder(reason="undone", discard=not state.begun_before),
        tries=STOP_TRIES,
    )
    told, acts = _tell_all(undoing)
    return told, [*acts, Say("undoing: stopping what was prepared")]


def _undone(state: GangState) -> Result:
    ran = any(member.stop and member.stop.ran for member in state.members)
    acts: list[Act] = [NoteRan()] if ran and state.begun_before else []
    return msgspec.structs.replace(
        state, stage=Stage.OVER, outcome=_outcome_of_undo(state)
    ), acts


def _outcome_of_undo(state: GangState) -> Outcome:
    left = _left(state)
    words = [fault.text for fault in state.faults]
    if left:
        lines = "\n".join([*words, *left])
        return Outcome(phase=Phase.FAILED, error=StopUnproven, words=lines)
    if not state.faults:
        return Outcome.stopped("before it started")
    if all(isinstance(fault, NodesBusy) for fault in state.faults):
        return Outcome(phase=Phase.REFUSED, error=NodesBusy, words="\n".join(words))
    failed = f"the {state.steps[0]} failed, so nothing runs anywhere:"
    lines = "\n".join([failed, *words])
    return Outcome(phase=Phase.FAILED, error=LaunchFailed, words=lines)


# ---- the streams ----


def _follow(state: GangState, members: Iterable[Member], now: float) -> Result:
    acts: list[Act] = []
    for member in members:
        state = _with_member(state, member, connected_at=now, follow_at=None)
        acts.append(Follow(member.node, member.only_end))
    return state, acts


def _connected(state: GangState, member: Member, now: float) -> Result:
    acts: list[Act] = []
    if member.said_away:
        seconds = now - (member.away_since or now)
        acts.append(Say(f"connected again after {seconds:.0f} s", member.node))
    acts.append(ChangeRank(member.rank, {"connected": True}))
    connected = _with_member(
        state,
        member,
        in_touch=True,
        said_away=False,
        away_since=None,
        connected_at=now,
    )
    if member.stop and member.stop.unreached:
        # It was given up, and can be told after all.
        connected = _with_member(connected, member, stop_at=now)
    return _before(acts, judge(connected, now))


def _disconnected(
    state: GangState, member: Member, event: Disconnected, now: float
) -> Result:
    was_steady = member.in_touch and now - member.connected_at > STEADY_SECONDS
    is_known = event.is_like(member.trouble) and not was_steady
    tries = 0 if was_steady else member.follow_tries
    repeats = member.repeats + 1 if is_known else 1
    acts: list[Act] = []
    if member.in_touch:
        acts.append(ChangeRank(member.rank, {"connected": False}))
    if not is_known:
        lost = f"not in touch, trying again; the rank goes on meanwhile. {event.words}"
        acts.append(Say(lost, member.node))
    if event.trouble is Trouble.FAULT and repeats >= FAULTS_MOST:
        return _before(acts, _give_up_streams(state, member, event, now))
    refused = event.trouble is Trouble.REFUSED
    pause = retry_pause(repeats - 1 if refused else tries, refused=refused)
    away_since = member.away_since or now
    waiting = _with_member(
        state,
        member,
        in_touch=False,
        said_away=member.said_away or not is_known,
        trouble=event,
        repeats=repeats,
        # A node that says why it cannot is there.
        away_since=None if event.trouble is Trouble.FAULT else away_since,
        follow_tries=tries + 1,
        follow_at=now + pause,
    )
    return _before(acts, _lost_if_too_long(waiting, member.node, event.at, now))


def _lost_if_too_long(state: GangState, node: str, at: float, now: float) -> Result:
    """Give a node up that is missed for too long; `at` is now in Unix seconds."""
    judged, acts = judge(state, now)
    if judged.looking and not judged.given_up:
        # What is known of the other nodes is of earlier, and this machine may have gone offline since.
        return judged, acts
    ended, more = _lost_if_missed(judged, judged.member(node), at, now)
    return ended, [*more, *acts]


def _looked(state: GangState, event: Looked, now: float) -> Result:
    looked = msgspec.structs.replace(state, looking=False)
    state, acts = judge(looked, now, looked=event.any_answers)
    for member in state.members:
        # One that is being asked for again is judged by what comes of that.
        if member.trouble and member.follow_at is not None:
            at = member.trouble.at
            state, more = _lost_if_missed(state, state.member(member.node), at, now)
            acts += more
    return state, acts


def _lost_if_missed(state: GangState, member: Member, at: float, now: float) -> Result:
    limit = _away_limit(state, member)
    if limit is None or not is_missed_for(state, member, now, limit):
        return state, []
    why = f"{member.node} has been out of reach for {limit:g} s"
    given_up = RankExit.given_up(member.node, member.rank, at, why)
    return _exited(state, member, Exited(given_up), now)


def _give_up_streams(
    state: GangState, member: Member, event: Disconnected, now: float
) -> Result:
    """Wait for the end of a rank alone, whose streams its node cannot send; that failing, the rank counts as lost."""
    if member.catching_up:
        assert member.exit  # noqa: S101
        return _exited(state, member, Exited(member.exit), now)
    if member.only_end:
        why = f"{member.node} cannot say how its rank is: {event.words}"
        lost = RankExit.given_up(member.node, member.rank, event.at, why)
        return _exited(state, member, Exited(lost), now)
    words = f"its streams are given up, and its end is waited for: {event.words}"
    waiting = _with_member(
        state,
        member,
        in_touch=False,
        only_end=True,
        trouble=event,
        repeats=0,
        away_since=None,
        follow_at=now,
    )
    return waiting, [Say(words, member.node)]


def _away_limit(state: GangState, member: Member) -> float | None:
    if member.catching_up:
        return state.limits.catch_up_seconds
    return state.limits.away_seconds


# ---- the end of a rank ----


def _exited(state: GangState, member: Member, event: Exited, now: float) -> Result:
    rank_exit = event.exit
    if member.catching_up and not event.whole and not state.given_up:
        later = now + STORE_SECONDS
        return _with_member(state, member, **_NOT_FOLLOWED | {"follow_at": later}), []
    if member.catching_up:
        # How its rank ended was known before; only its streams were not.
        caught_up = _with_member(
            state,
            member,
            catching_up=False,
            behind=member.behind and not event.whole,
            **_NOT_FOLLOWED,
        )
        disconnected: list[Act] = [ChangeRank(member.rank, {"connected": False})]
        return _before(disconnected, _settle(caught_up, now))
    ended = _with_member(
        state, member, exit=rank_exit, behind=not event.whole, **_NOT_FOLLOWED
    )
    acts: list[Act] = []
    if state.stage is Stage.RUNNING and rank_exit.was_reset:
        ended, acts = _stop_after_reset(ended)
    elif state.stage is Stage.RUNNING and not rank_exit.succeeded:
        ended, acts = _stop_after_failure(ended)
    noted = [*acts, *_notes_of_exit(member, rank_exit)]
    return _before(noted, _settle(ended, now))


def _notes_of_exit(member: Member, rank_exit: RankExit) -> list[Act]:
    # What the node showed at a stop is of later than the exit record, whichever came here first.
    left_at_stop = member.stop.left_pids if member.stop else ()
    left_pids = rank_exit.left_pids or left_at_stop
    if rank_exit.was_reset:
        how = f"reset by {rank_exit.stopped_by or 'somebody'}"
    elif rank_exit.stopped:
        how = "stopped"
    elif rank_exit.interrupted:
        how = f"interrupted by signal {rank_exit.interrupted}"
    elif rank_exit.lost:
        how = rank_exit.lost
    elif rank_exit.signal:
        how = f"killed by signal {rank_exit.signal}"
    else:
        how = f"exit code {rank_exit.code}"
    changes: dict[str, Any] = {
        "connected": False,
        "exit_code": rank_exit.code,
        "signal": rank_exit.signal or rank_exit.interrupted,
        "ended_at": rank_exit.at,
        "lost": rank_exit.lost,
        "left_pids": left_pids,
        "proven_gone": not rank_exit.lost and not left_pids,
    }
    if rank_exit.left_pids:
        pids = ", ".join(map(str, rank_exit.left_pids))
        how += f"; still there: pids {pids}"
    if rank_exit.outlived:
        how += f"; went on without it, and was ended: {'; '.join(rank_exit.outlived)}"
        changes["outlived"] = rank_exit.outlived
    if rank_exit.suspects:
        how += f"; may be of it, left alone: {'; '.join(rank_exit.suspects)}"
        changes["suspects"] = rank_exit.suspects
    return [
        ChangeRank(rank_exit.rank, changes),
        Say(f"rank {rank_exit.rank} ended: {how}", rank_exit.node),
    ]


# ---- the stop ----


def _stop_after_failure(state: GangState) -> Result:
    # A job that may be started again need not wait for a node that stays away.
    waits = state.limits.away_seconds is None
    order = StopOrder(reason="failure")
    tries = None if waits else STOP_TRIES
    return _stop(state, order, tries, "a rank failed: stopping the others")


def _stop_after_reset(state: GangState) -> Result:
    order = StopOrder(reason=Reason.RESET)
    return _stop(state, order, None, "a node was reset: stopping the others")


def _stop_asked(state: GangState, now: float, *, given_up: bool) -> Result:
    state = msgspec.structs.replace(
        state, stop_asked=True, given_up=state.given_up or given_up
    )
    if state.stage is Stage.RUNNING:
        grace = state.limits.stop_grace_seconds
        order = StopOrder(reason=Reason.ASKED, grace_seconds=grace)
        return _stop(state, order, None, "stopping all ranks, as asked")
    if not state.given_up:
        return state, []
    # Whoever waited for its next try is not waited for.
    for member in state.members:
        if member.stop_at is not None:
            state = _with_member(state, member, stop_at=None)
        if member.catching_up and member.follow_at is not None:
            state = _with_member(state, member, catching_up=False, follow_at=None)
    return _settle(state, now)


def _stop(state: GangState, order: StopOrder, tries: int | None, words: str) -> Result:
    stopping = msgspec.structs.replace(
        state, stage=Stage.STOPPING, order=order, tries=tries
    )
    told, acts = _tell_all(stopping)
    return told, [*acts, ChangePhase(Phase.STOPPING), Say(words)]


def _tell_all(state: GangState) -> Result:
    order = state.order
    assert order  # noqa: S101
    return state, [TellToStop(member.node, order) for member in state.members]


def _stop_told(
    state: GangState, member: Member, result: StopResult, now: float
) -> Result:
    if result.unreached is not None:
        return _not_told(state, member, result, result.unreached, now)
    shown = {"left_pids": result.left_pids, "proven_gone": result.proven_gone}
    told = _with_member(
        state,
        member,
        stop=result,
        stop_at=None,
        stopped_at=now if result.proven_gone else None,
    )
    return _before([ChangeRank(member.rank, shown)], _settle(told, now))


def _not_told(
    state: GangState, member: Member, result: StopResult, why: HostError, now: float
) -> Result:
    tries = member.stop_tries + 1
    enough = state.tries is not None and tries >= state.tries
    last = state.given_up or (enough and not may_be_offline(state, member))
    acts: list[Act] = []
    again_at = None
    if not last:
        refused = trouble_of(why) is Trouble.REFUSED
        again_at = now + retry_pause(tries - 1, refused=refused)
        if why.text != member.stop_words_said:
            away = f"cannot be told to stop, trying again. {why.text}"
            acts.append(Say(away, member.node))
    told = _with_member(
        state,
        member,
        stop=result,
        stop_tries=tries,
        stop_at=again_at,
        stop_words_said=why.text,
    )
    return _before(acts, _settle(told, now))


# ---- the next try, and the end ----


def _try_again(state: GangState, now: float) -> Result:
    """Ask the nodes again whose pause is over."""
    acts: list[Act] = []
    order = state.order
    for member in state.members:
        if order and member.stop_at is not None and member.stop_at <= now:
            state = _with_member(state, member, stop=None, stop_at=None)
            acts.append(TellToStop(member.node, order))
    for member in state.members:
        if member.follow_at is not None and member.follow_at <= now:
            state = _with_member(state, member, follow_at=None)
            acts.append(Follow(member.node, member.only_end))
    for member in state.members:
        if _is_end_late(state, member, now):
            state, more = _end_unread(state, state.member(member.node), now)
            acts += more
    return state, acts


def _is_end_late(state: GangState, member: Member, now: float) -> bool:
    """Return whether a rank is proven gone, but its end does not come between two tries to follow it."""
    if state.stage is not Stage.STOPPING or member.exit or member.follow_at is None:
        return False
    if member.stopped_at is None:
        return False
    limit = state.limits.catch_up_seconds
    if state.given_up or is_missed_for(state, member, now, limit):
        return True
    return member.away_since is None and now - member.stopped_at > limit


def _end_unread(state: GangState, member: Member, now: float) -> Result:
    assert member.stop  # noqa: S101
    why = f"{member.node} has nothing left of it, and does not say how it ended"
    unread = RankExit.given_up(member.node, member.rank, member.stop.at, why)
    return _exited(state, member, Exited(unread), now)


def _settle(state: GangState, now: float) -> Result:
    """Go on to the next stage if nothing is missing for this one."""
    stops_known = all(member.stop_is_known for member in state.members)
    all_ended = all(member.exit for member in state.members)
    caught_up = not any(member.catching_up for member in state.members)
    match state.stage:
        case Stage.UNDOING if stops_known:
            return _undone(state)
        case Stage.RUNNING if all_ended:
            return _catch_up(state, now)
        case Stage.STOPPING if stops_known and all_ended:
            return _catch_up(state, now)
        case Stage.STOPPING if stops_known and state.given_up and _left(state):
            return _catch_up(state, now)
        case Stage.CATCHING_UP if caught_up and (stops_known or not state.order):
            return msgspec.structs.replace(
                state, stage=Stage.OVER, outcome=_outcome_of_stop(state)
            ), []
    return state, []


def _catch_up(state: GangState, now: float) -> Result:
    """Fetch the rest of streams: of nodes given up before that have answered since, and what was not stored here."""
    state = msgspec.structs.replace(state, stage=Stage.CATCHING_UP)
    back = [member for member in state.members if _has_more(member)]
    if not back:
        return _settle(state, now)
    for member in back:
        state = _with_member(
            state, member, catching_up=True, away_since=None, follow_tries=0
        )
    return _follow(state, [state.member(member.node) for member in back], now)


def _has_more(member: Member) -> bool:
    if member.exit and member.exit.gave_up:
        return member.stop is not None and member.stop.proven_gone
    return member.behind


def _outcome_of_stop(state: GangState) -> Outcome | None:
    left = _left(state)
    if not left:
        return None
    if state.stopped_for:
        phase = Phase.STOPPED
    elif state.given_up or state.limits.away_seconds is None:
        phase = Phase.FAILED
    else:
        # A restart looks after the nodes that are missing, and an end without one names the rank that was lost.
        return None
    words = "\n".join(left)
    return Outcome(
        phase=phase, error=StopUnproven, words=words, reason=state.stopped_for
    )


# ---- helpers ----


def _left(state: GangState) -> list[str]:
    """Give a line for each node without the proof of its stop."""
    return [member.stop_words for member in state.members if member.stop_words]


def _with_member(state: GangState, member: Member, **changes: Any) -> GangState:
    members = tuple(
        msgspec.structs.replace(known, **changes)
        if known.node == member.node
        else known
        for known in state.members
    )
    return msgspec.structs.replace(state, members=members)


def _before(acts: Sequence[Act], result: Result) -> Result:
    """Put these acts before those of a result."""
    state, more = result
    return state, [*acts, *more]
