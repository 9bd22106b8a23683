"""Training environments as a user sees them: a line for each node while they are made, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import UgroError
from ...text import printable
from .format import byte_size, columns, duration, note, open_console, show_json, shown

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ...environments.sync import Progress, State, Synced


class BuildLines:
    """While it is entered: a line for each node, redrawn on a terminal, printed at each new phase elsewhere."""

    def __init__(self) -> None:
        from rich.progress import Progress as Bars  # late: few commands draw bars
        from rich.progress import TextColumn

        from .live import live_console

        self._console = live_console(sys.stderr)
        self._bars = Bars(TextColumn("{task.description}"), console=self._console, transient=True)
        self._tasks: dict[str, Any] = {}
        self._phases: dict[str, str] = {}

    def __enter__(self) -> BuildLines:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def update(self, node: str, progress: Progress) -> None:
        """The node has come so far."""
        if not self._console.is_terminal:
            if self._phases.get(node) != progress.phase:
                self._phases[node] = progress.phase
                note(f"{node}: {progress.phase}")
            return
        if node not in self._tasks:
            self._tasks[node] = self._bars.add_task(node, total=None)
        self._bars.update(self._tasks[node], description=shown(self._line(node, progress)))

    def _line(self, node: str, progress: Progress) -> str:
        width = max(len(name) for name in self._tasks)
        parts = [node.ljust(width), progress.phase]
        if progress.seconds:
            parts += [duration(progress.seconds), byte_size(progress.bytes)]
        return "  ".join(map(printable, [*parts, progress.line]))[: self._console.width - 1]


def show_sync(results: Mapping[str, Synced | UgroError], fault: UgroError | None, *, as_json: bool) -> None:
    """A row a node: what it had, what it has, and how long that took."""
    if as_json:
        plain = {
            name: {"error": result.text, "exit_code": result.exit_code}
            if isinstance(result, UgroError)
            else msgspec.to_builtins(result)
            for name, result in results.items()
        }
        return show_json({"even": fault is None, "nodes": plain})
    rows = [["", "node", "was", "is", "seconds", "state"]]
    for name, result in results.items():
        if isinstance(result, UgroError):
            rows.append(["✗", name, "", "", "", "not brought up to date"])
            continue
        made = result.why is not None
        rows.append(
            [
                "✓",
                name,
                str(result.before) if made else "",
                str(result.after),
                f"{result.seconds:.1f}" if made else "",
                f"made, {byte_size(result.bytes)}: {result.why}" if made else "as it should be",
            ]
        )
    columns(open_console(), rows)
    for result in results.values():
        if not isinstance(result, UgroError) and result.kept:
            note(
                f"{result.node}: the environment that was there is now {result.kept}; remove it when all is well"
            )
    return None


def show_environments(states: Mapping[str, State | UgroError], *, as_json: bool) -> None:
    """A row a node: what it has, and what a sync would do."""
    if as_json:
        plain = {
            name: {"error": state.text, "exit_code": state.exit_code}
            if isinstance(state, UgroError)
            else {"found": msgspec.to_builtins(state.fingerprint), "behind": state.why}
            for name, state in states.items()
        }
        return show_json({"nodes": plain})
    rows = [["", "node", "is", "would be"]]
    for name, state in states.items():
        if isinstance(state, UgroError):
            rows.append(["✗", name, "", state.text.partition("\n")[0].removeprefix(f"{name}: ")])
        elif state.recipe is None:
            rows.append(["✓", name, str(state.fingerprint), "left alone: its manager is `existing`"])
        else:
            todo = f"made by {state.recipe.manager} from {state.recipe.digest[:7]}: {state.why}"
            rows.append(
                [
                    "✗" if state.why else "✓",
                    name,
                    str(state.fingerprint),
                    todo if state.why else "left as it is",
                ]
            )
    columns(open_console(), rows)
    return None
