"""A node is told once to stop a rank, and what it showed is said."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.backends.ssh.fake_hosts import Answer, FakeHost
from tests.unit.factories import make_node
from ugro_tasks.backends.ssh.stop import StopOrder, StopResult, tell_to_stop
from ugro_tasks.errors import HostUnreachable, NodeFault

GONE: dict[str, Any] = {"left": [], "exit": None}
AWAY = HostUnreachable("gpu1", "no route to it")


def tell(answer: Answer, order: StopOrder | None = None) -> tuple[FakeHost, StopResult]:
    """Tell a fake host, and give it with what came of it."""
    host = FakeHost(make_node(1), answer)
    order = order or StopOrder(reason="failure")
    result = tell_to_stop(host, "/project/jobs/exp1", "exp1:gpu1:slot", order)
    return host, result


def test_the_node_is_told_what_to_stop_and_how() -> None:
    order = StopOrder(reason="undone", grace_seconds=7.0, discard=True)
    host, result = tell(GONE, order)
    [request] = host.requests
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
    assert host.timeouts == [7.0 + 25.0]
    assert (result.proven_gone, result.ran) == (True, False)
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
    _, result = tell({"left": [], "exit": record})
    assert result.ran is ran


def test_what_lives_after_kill_is_named() -> None:
    left = [
        {"pid": pid, "job": "exp1", "token": "exp1:gpu1:slot", "command": "python"}
        for pid in (41, 42)
    ]
    _, result = tell({"left": left, "exit": None})
    assert result.left_pids == (41, 42)
    assert not result.proven_gone
    assert result.words == "still there after KILL: pids 41, 42"


@pytest.mark.parametrize(
    "error", [AWAY, NodeFault("gpu1", "its answer cannot be read")]
)
def test_a_node_that_cannot_be_told_is_no_proof_and_has_a_remedy(
    error: HostUnreachable | NodeFault,
) -> None:
    host, result = tell(error)
    assert len(host.requests) == 1
    assert result.unreached is error
    assert not result.proven_gone
    assert result.words == (
        f"{error.text}\n    it could not be told to stop; later: inv reset --nodes gpu1"
    )
