"""A rank is told to stop until its node has answered, or until nobody waits for it any more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.backends.ssh.fake_hosts import Answer, FakeHost
from tests.unit.factories import make_node
from ugro_tasks.backends.ssh.stop import StopOrder, StopResult, stop_rank
from ugro_tasks.errors import HostUnreachable, NodeFault

GONE: dict[str, Any] = {"left": [], "exit": None}
AWAY = HostUnreachable("gpu1", "no route to it")


class Telling:
    """One call of `stop_rank` on a fake host, with what it said and how long it slept between its tries."""

    def __init__(self, *answers: Answer) -> None:
        self.host = FakeHost(make_node(1), *answers)
        self.said: list[str] = []
        self.pauses: list[float] = []
        self.given_up_after: int | None = None

    def tell(
        self, order: StopOrder | None = None, tries: int | None = None
    ) -> StopResult:
        return stop_rank(
            self.host,
            "/project/jobs/exp1",
            "exp1:gpu1:slot",
            order or StopOrder(reason="failure"),
            tries=tries,
            given_up=self._given_up,
            trying_again=self.said.append,
            sleep=self.pauses.append,
        )

    def _given_up(self) -> bool:
        return (
            self.given_up_after is not None
            and len(self.host.requests) >= self.given_up_after
        )


def test_the_node_is_told_what_to_stop_and_how() -> None:
    telling = Telling(GONE)
    result = telling.tell(StopOrder(reason="undone", grace_seconds=7.0, discard=True))
    [request] = telling.host.requests
    told = {
        name: request[name]
        for name in ("folder", "token", "grace_seconds", "reason", "discard")
    }
    assert told == {
        "folder": "/project/jobs/exp1",
        "token": "exp1:gpu1:slot",
        "grace_seconds": 7.0,
        "reason": "undone",
        "discard": True,
    }
    assert telling.host.timeouts == [7.0 + 25.0]
    assert result == StopResult()
    assert result.proven_gone
    assert result.words is None


@pytest.mark.parametrize(
    ("record", "ran"),
    [
        (None, False),
        ({"stopped": "undone"}, False),
        ({"code": 0, "started_at": 1.5}, True),
    ],
)
def test_the_exit_record_says_whether_the_rank_had_begun(
    record: dict[str, Any] | None, ran: bool
) -> None:
    assert Telling({"left": [], "exit": record}).tell().ran is ran


def test_what_lives_after_kill_is_named() -> None:
    left = [
        {"pid": pid, "job": "exp1", "token": "exp1:gpu1:slot", "command": "python"}
        for pid in (41, 42)
    ]
    result = Telling({"left": left, "exit": None}).tell()
    assert result.left_pids == (41, 42)
    assert not result.proven_gone
    assert result.words == "still there after KILL: pids 41, 42"


def test_a_node_out_of_reach_is_tried_again_with_growing_pauses_and_said_once() -> None:
    telling = Telling(*[AWAY] * 6, GONE)
    assert telling.tell().proven_gone
    assert telling.pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert telling.said == [f"cannot be told to stop, trying again. {AWAY.text}"]


@pytest.mark.parametrize(
    "error", [AWAY, NodeFault("gpu1", "its answer cannot be read")]
)
def test_after_so_many_tries_it_is_left_with_the_remedy(
    error: HostUnreachable | NodeFault,
) -> None:
    telling = Telling(error)
    result = telling.tell(tries=3)
    assert len(telling.host.requests) == 3
    assert telling.pauses == [0.5, 1.0]
    assert result.unreached is error
    assert not result.proven_gone
    assert result.words == (
        f"{error.text}\n    it could not be told to stop; later: inv reset --nodes gpu1"
    )


def test_one_try_says_nothing_of_another() -> None:
    telling = Telling(AWAY)
    assert telling.tell(tries=1).unreached is AWAY
    assert (telling.said, telling.pauses) == ([], [])


def test_nobody_is_waited_for_who_was_given_up() -> None:
    telling = Telling(AWAY)
    telling.given_up_after = 2
    assert telling.tell().unreached is AWAY
    assert len(telling.host.requests) == 2


def test_who_answers_is_believed_even_if_it_was_given_up() -> None:
    telling = Telling(GONE)
    telling.given_up_after = 1
    assert telling.tell().proven_gone
