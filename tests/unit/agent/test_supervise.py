"""A job from its gate to its end, on three fake nodes: attempts, restarts, and what is written down."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.tools import wait_until
from tests.unit.agent.world import DONE, FAILED, World
from tests.unit.backends.ssh.fake_hosts import FakeNode
from ugro_tasks.agent import supervise
from ugro_tasks.backends.ssh.backend import SshBackend
from ugro_tasks.errors import RecordError, StopUnproven, UgroError
from ugro_tasks.jobs.phase import Phase, Reason
from ugro_tasks.jobs.plan import LaunchPlan
from ugro_tasks.jobs.state import RankState

BUSY = {"error": "busy", "message": "taken", "holder": {"job": "exp0"}}


def test_a_success_is_one_attempt_and_a_line_of_history(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.exits(DONE)
    state = world.run()
    assert (state.phase, state.exit_code, state.cause) == (Phase.SUCCEEDED, 0, None)
    [attempt] = state.attempts
    assert attempt.ran
    assert attempt.gathered
    assert attempt.ended_at is not None
    assert state.gathered_at is not None
    assert all(rank.exit_code == 0 and rank.proven_gone for rank in state.ranks)
    [line] = (world.experiments.folder / "job_history.jsonl").read_text().splitlines()
    assert json.loads(line)["job_id"] == world.experiment.job_id
    assert world.said()[-1] == "succeeded"


def test_without_restarts_a_failed_rank_is_the_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.nodes[1].exits = [FAILED]
    state = world.run()
    assert (state.phase, state.exit_code) == (Phase.FAILED, 7)
    assert state.cause
    assert state.cause.message == "rank 1 on gpu1: exit code 3"
    assert world.prepared() == [1, 1, 1]
    assert world.said()[-1] == "failed: rank 1 on gpu1: exit code 3"


def test_after_a_failed_rank_all_begin_again(tmp_path: Path) -> None:
    world = World(tmp_path, max_restarts=1)
    world.exits(None, DONE)
    world.nodes[1].exits = [FAILED, DONE]
    state = world.run()
    assert state.phase is Phase.SUCCEEDED
    first, second = state.attempts
    assert first.cause
    assert first.cause.message == "rank 1 on gpu1: exit code 3"
    assert (second.number, second.nodes, second.cause) == (
        2,
        ("gpu0", "gpu1", "gpu2"),
        None,
    )
    assert "rank 1 on gpu1: exit code 3; restart 1 of 1" in world.said()
    folders = [node.last("prepare")["folder"] for node in world.nodes]
    assert all("-2.gpu" in folder for folder in folders)


def test_a_rank_that_fails_each_time_uses_up_the_restarts(tmp_path: Path) -> None:
    world = World(tmp_path, max_restarts=2)
    world.nodes[1].exits = [FAILED] * 3
    state = world.run()
    assert (state.phase, state.exit_code, len(state.attempts)) == (Phase.FAILED, 7, 3)
    assert all(attempt.cause for attempt in state.attempts)


def test_a_job_is_stopped_when_asked_and_not_begun_again(tmp_path: Path) -> None:
    world = World(tmp_path, max_restarts=3)
    thread = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    world.experiment.ask_to_stop()
    state = world.end_of(thread)
    assert (state.phase, state.exit_code, len(state.attempts)) == (
        Phase.STOPPED,
        130,
        1,
    )
    assert [node.last("stop")["reason"] for node in world.nodes] == ["asked"] * 3


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda node: node.cut(), 5),
        (lambda node: node.refuses.update(prepare=BUSY), 6),
    ],
    ids=["away", "taken"],
)
def test_what_never_ran_is_refused(
    tmp_path: Path, wrong: Callable[[FakeNode], None], code: int
) -> None:
    world = World(tmp_path, max_restarts=3)
    wrong(world.nodes[2])
    state = world.run()
    assert (state.phase, state.exit_code, state.started_at) == (
        Phase.REFUSED,
        code,
        None,
    )
    assert not any("start" in node.told for node in world.nodes)


def test_a_node_that_is_taken_at_the_start_of_a_restart_is_tried_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, max_restarts=2)
    world.exits(None, DONE)
    world.nodes[1].exits = [FAILED, DONE]
    world.nodes[2].refuses_at = {("prepare", 2): BUSY}
    state = world.run()
    assert state.phase is Phase.SUCCEEDED
    assert [attempt.ran for attempt in state.attempts] == [True, False, True]
    assert "gpu2: held by job exp0; restart 2 of 2" in world.said()


@pytest.mark.parametrize("ends", ["stored", "stopped"])
def test_a_restart_waits_while_the_disk_here_takes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    world = World(tmp_path, max_restarts=1)
    world.exits(None, DONE)
    world.nodes[1].exits = [FAILED, DONE]
    full: list[UgroError] = [RecordError("experiments: No space left on device")]
    asked: list[int] = []

    def fetched(_: SshBackend, plan: LaunchPlan) -> list[UgroError]:
        asked.append(plan.attempt)
        if ends == "stopped":
            world.experiment.ask_to_stop()
            return full
        return full if len(asked) < 3 else []

    monkeypatch.setattr(SshBackend, "fetch_checkpoints", fetched)
    monkeypatch.setattr(supervise, "retry_pause", lambda _: 0.01)
    state = world.run()
    waits = "waits with the restart until checkpoints can be stored: experiments: No space left on device"
    assert world.said().count(waits) == (1 if ends == "stored" else 0)
    if ends == "stored":
        assert (state.phase, asked) == (Phase.SUCCEEDED, [1, 1, 1])
    else:
        assert (state.phase, asked) == (Phase.STOPPED, [1])
    started = [node.told.count("start") for node in world.nodes]
    assert started == ([2, 2, 2] if ends == "stored" else [1, 1, 1])


def test_a_node_that_stays_away_is_left_behind_and_told_to_stop_later(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, max_restarts=1, min_nodes=2)
    thread = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    world.exits(DONE)
    world.nodes[2].cut()
    state = world.end_of(thread)
    assert state.phase is Phase.SUCCEEDED
    first, second = state.attempts
    assert first.left_behind == ("gpu2",)
    assert second.nodes == ("gpu0", "gpu1")
    assert any("is still away" in words for words in world.said())
    world.nodes[2].mend()
    wait_until(
        lambda: "is back; nothing of the job is left there" in world.said(),
        "the late stop",
    )


def test_a_node_that_keeps_a_restart_from_beginning_is_told_to_stop_later(
    tmp_path: Path,
) -> None:
    """Its rank may run on, after the attempt that it belongs to, and after the job."""
    world = World(tmp_path, max_restarts=1)
    thread = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    world.nodes[2].cut()
    state = world.end_of(thread)
    assert state.phase is Phase.FAILED
    assert state.attempts[0].left_behind == ("gpu2",)
    assert any("is still away" in words for words in world.said())
    world.nodes[2].mend()
    wait_until(lambda: world.nodes[2].told[-1] == "stop", "the late stop")
    assert not world.nodes[2].runs


def test_a_job_is_seen_off_until_each_node_was_heard(tmp_path: Path) -> None:
    """It has ended, and one of its nodes may still run a rank."""
    world = World(tmp_path)
    supervision = world.supervision()
    thread = threading.Thread(target=supervision.run, daemon=True)
    thread.start()
    wait_until(world.is_followed, "all ranks to be followed")
    world.nodes[2].cut()
    world.experiment.ask_to_stop(give_up=True)
    state = world.end_of(thread)
    assert (state.phase, state.exit_code) == (Phase.STOPPED, StopUnproven.exit_code)
    assert state.attempts[0].left_behind == ("gpu2",)
    seeing_off = threading.Thread(target=supervision.see_off, daemon=True)
    seeing_off.start()
    told = len(world.nodes[2].told)
    world.nodes[2].mend()
    seeing_off.join(30)
    assert not seeing_off.is_alive()
    assert world.nodes[2].told[told:] == ["stop"]
    assert world.said()[-1] == "is back; nothing of the job is left there"


def test_an_agent_that_comes_later_goes_on_with_the_attempt_under_way(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    before = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    # The one before plays no part any more: its agent was killed, say.
    thread = world.begin()
    for node in world.nodes:
        node.end(**DONE)
    world.end_of(before)
    state = world.end_of(thread)
    assert (state.phase, len(state.attempts)) == (Phase.SUCCEEDED, 1)
    assert world.prepared() == [1, 1, 1]


def test_an_agent_that_is_killed_at_a_restart_leaves_the_restart_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetching the outputs of a failed attempt may take long: its end is not written down before."""
    world = World(tmp_path, max_restarts=1)
    world.exits(None, DONE)
    world.nodes[1].exits = [{**FAILED, "outputs": ["model.bin"]}, DONE]
    killed = iter([True])

    def fetch(*_: object) -> list[UgroError]:
        if next(killed, False):
            raise SystemExit
        return []

    monkeypatch.setattr(SshBackend, "fetch", fetch)
    first = world.supervision()
    with pytest.raises(SystemExit):
        first.run()
    first.journal.settle()
    state = world.run()
    assert (state.phase, len(state.attempts)) == (Phase.SUCCEEDED, 2)
    assert world.prepared() == [2, 2, 2]


def test_a_request_to_stop_of_somebody_else_is_ignored_and_said(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    thread = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    (world.experiment.folder / "stop").write_text('{"job_id": "exp1", "give_up": true}')
    wait_until(
        lambda: any("a request to stop is ignored" in words for words in world.said()),
        "the word of it",
    )
    for node in world.nodes:
        node.end(**DONE)
    assert world.end_of(thread).phase is Phase.SUCCEEDED
    assert sum("is ignored" in words for words in world.said()) == 1


def test_half_a_line_of_an_event_is_cut_off_and_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.exits(DONE)
    events = world.experiment.folder / "events.jsonl"
    events.write_bytes(b'{"time": 1.0, "message": "whole"}\n{"time": 2.0, "mess')
    assert world.run().phase is Phase.SUCCEEDED
    said = world.said()
    assert said[0] == "whole"
    assert "events.jsonl: half a line of 19 bytes was cut off" in said
    assert b"mess\n" not in events.read_bytes()


# ---- success is proven ----

# Exit records that are none of a success, though some have the code 0.
NO_SUCCESS: list[dict[str, Any]] = [
    {"code": 1, "interrupted": 15},
    {"code": 0, "interrupted": 1},
    {"code": None, "signal": 15, "interrupted": 15, "shutting_down": True},
    {"code": 0, "signal": 9},
    {"code": 0, "stopped": "asked"},
    {"code": 0, "stopped": "failure"},
    {"code": 0, "stopped": "a word of another version"},
    {"code": None},
]


@pytest.mark.parametrize("record", NO_SUCCESS, ids=str)
def test_a_rank_without_the_proof_of_success_fails_the_job_and_stops_the_others(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    world = World(tmp_path)
    world.nodes[1].exits = [record]
    state = world.run()
    assert (state.phase, state.exit_code, state.reason) == (Phase.FAILED, 7, None)
    assert state.cause
    assert state.cause.message.startswith("rank 1 on gpu1: ")
    assert all("stop" in node.told for node in world.nodes)


def test_an_interrupted_rank_is_worth_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, max_restarts=1)
    world.exits(None, DONE)
    world.nodes[2].exits = [{"code": 1, "interrupted": 15}, DONE]
    state = world.run()
    assert (state.phase, len(state.attempts)) == (Phase.SUCCEEDED, 2)
    assert "rank 2 ended: interrupted by signal 15" in world.said()


def test_a_reset_is_a_request_to_stop_and_not_worth_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, max_restarts=3)
    reset = {"code": None, "stopped": "reset", "stopped_by": "ada@home"}
    world.nodes[1].exits = [reset]
    state = world.run()
    assert (state.phase, state.reason) == (Phase.STOPPED, Reason.RESET)
    assert (state.exit_code, len(state.attempts)) == (130, 1)
    assert "rank 1 ended: reset by ada@home" in world.said()
    assert world.said()[-1] == (
        "stopped: gpu1 was reset by ada@home; nothing of it is left on any node"
    )
    assert world.nodes[0].last("stop")["reason"] == "reset"


def test_a_stop_that_comes_after_all_have_ended_well_is_too_late(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    thread = world.begin()
    wait_until(world.is_followed, "all ranks to be followed")
    world.nodes[2].cut()
    for node in world.nodes[:2]:
        node.end(**DONE)
    world.experiment.ask_to_stop()
    wait_until(
        lambda: world.experiment.state().phase is Phase.STOPPING, "the stop to begin"
    )
    world.nodes[2].end(**DONE)
    world.nodes[2].mend()
    state = world.end_of(thread)
    assert (state.phase, state.exit_code) == (Phase.SUCCEEDED, 0)


def test_a_success_that_is_not_proven_cannot_be_written_down(tmp_path: Path) -> None:
    world = World(tmp_path)
    journal = world.supervision().journal
    journal.change(phase=Phase.PREPARING)
    journal.change(phase=Phase.RUNNING)
    for ranks in ((), (RankState(rank=0, node="gpu0", exit_code=0, signal=15),)):
        journal.change(ranks=ranks)
        with pytest.raises(RuntimeError, match="cannot have succeeded"):
            journal.change(phase=Phase.SUCCEEDED)
        journal.state = msgspec.structs.replace(journal.state, phase=Phase.RUNNING)
    journal.settle()
    assert world.experiment.state().phase is Phase.RUNNING
