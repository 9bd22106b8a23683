"""The stop of one rank on its node, and the node's answer."""

from __future__ import annotations

import time

import msgspec

from ...errors import HostError
from ...hosts.host import Host
from ...hosts.operations import Stop
from ...hosts.requests import ask

# A rank whose peer is gone waits in a collective and cannot react to TERM.
FAILURE_GRACE_SECONDS = 2.0
# What a node may take beyond the grace, for KILL and for the proof that nothing is left.
PROOF_SECONDS = 25.0
# How often a node out of reach is told to stop, where the job need not wait for it.
STOP_TRIES = 3


class StopOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The order to a node to stop its rank."""

    reason: str
    """For the rank's exit record: `asked`, `reset`, `failure` or `undone`."""
    grace_seconds: float = FAILURE_GRACE_SECONDS
    """From TERM to KILL."""
    discard: bool = False
    """Whether the rank's folder goes, too."""


class StopResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a node to a `StopOrder`."""

    at: float = 0.0
    """When, in Unix seconds."""
    ran: bool = False
    """Whether the rank had begun."""
    left_pids: tuple[int, ...] = ()
    """Its processes that live even after KILL."""
    unreached: HostError | None = None
    """Why the node could not be told, where that was given up."""

    @property
    def proven_gone(self) -> bool:
        """Whether the node has shown that nothing of the rank lives there."""
        return self.unreached is None and not self.left_pids

    @property
    def words(self) -> str | None:
        """Describe the fault; None if the rank is proven gone."""
        if self.unreached is not None:
            node = self.unreached.host
            return f"{self.unreached.text}\n    it could not be told to stop; later: inv reset --nodes {node}"
        if self.left_pids:
            return f"still there after KILL: pids {', '.join(map(str, self.left_pids))}"
        return None


def tell_to_stop(host: Host, folder: str, token: str, order: StopOrder) -> StopResult:
    """Tell the node once to stop a rank, and give its answer, or the error that kept the order from it.

    `folder` and `token` are those of the attempt on this node.
    """
    request = Stop(
        folder=folder,
        token=token,
        grace_seconds=order.grace_seconds,
        reason=order.reason,
        discard=order.discard,
    )
    seconds = order.grace_seconds + PROOF_SECONDS
    try:
        answer = ask(host, request, timeout_seconds=seconds)
    except HostError as error:
        return StopResult(at=time.time(), unreached=error)
    return StopResult(at=time.time(), ran=answer.ran, left_pids=answer.left_pids)
