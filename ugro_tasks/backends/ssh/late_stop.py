"""The stop of ranks on nodes left behind at a restart, once the nodes are back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ...errors import LoginRefused
from ...hosts.fleet import Fleet
from ...hosts.host import Host
from ...hosts.retry import retry_pause
from ...jobs.attempt_names import folder_of, token_of
from ...jobs.journal import Journal
from ...jobs.state import Attempt
from .stop import StopOrder, tell_to_stop


class LateStops:
    """Keeps telling the nodes left behind to stop, for as long as the agent lives."""

    def __init__(
        self,
        journal: Journal,
        fleet: Fleet,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.journal = journal
        self._hosts: dict[str, Host] = {host.node.name: host for host in fleet}
        self._sleep = sleep
        self._threads: dict[str, threading.Thread] = {}

    def begin(self) -> None:
        """Begin to tell those nodes that are not being told yet."""
        already = self.still_away()
        for name, number in left_behind(self.journal.state.attempts).items():
            if name in already:
                continue
            self._threads[name] = threading.Thread(
                target=self._stop,
                args=(self._hosts[name], number),
                name=f"late-stop-{name}",
                daemon=True,
            )
            self._threads[name].start()

    def wait(self) -> None:
        """Wait until all nodes have answered."""
        for thread in self._threads.values():
            thread.join()

    def still_away(self) -> set[str]:
        """Name the nodes without an answer so far."""
        return {name for name, thread in self._threads.items() if thread.is_alive()}

    def _stop(self, host: Host, number: int) -> None:
        record = self.journal.record
        folder = folder_of(record, number, host.node)
        token = token_of(record, number, host.node)
        node = host.node.name
        tried = 0
        said = ""
        while True:
            result = tell_to_stop(host, folder, token, StopOrder(reason="failure"))
            if result.unreached is None:
                break
            if result.unreached.text != said:
                said = result.unreached.text
                self.journal.log.info("%s: %s", node, said)
            refused = isinstance(result.unreached, LoginRefused)
            self._sleep(retry_pause(tried, refused=refused))
            tried += 1
        self.journal.say(
            f"is back; {result.words or 'nothing of the job is left there'}", node
        )


def left_behind(attempts: Sequence[Attempt]) -> dict[str, int]:
    """Find the nodes left behind: {node: the number of its last attempt}.

    A node of the attempt under way is not among them: it stops with that.
    """
    found: dict[str, int] = {}
    for name in {name for attempt in attempts for name in attempt.left_behind}:
        last = [attempt for attempt in attempts if name in attempt.nodes][-1]
        if last.ended_at is not None:
            found[name] = last.number
    return found
