"""The output of `inv sync-envs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from ...errors import UgroError
from .console import open_console
from .format import columns, note, show_json
from .values import byte_size

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...environments.sync import State, Synced


SYNC_HEADS = ["", "node", "was", "is", "seconds", "state"]
SURVEY_HEADS = ["", "node", "is", "would be"]


def show_sync(
    results: Mapping[str, Synced | UgroError], fault: UgroError | None, *, as_json: bool
) -> None:
    """Print a row for each node: environment before and after, seconds, state."""
    if as_json:
        nodes = {name: _synced_as_json(result) for name, result in results.items()}
        return show_json({"even": fault is None, "nodes": nodes})
    rows = [_sync_row(name, result) for name, result in results.items()]
    columns(open_console(), [SYNC_HEADS, *rows])
    for result in results.values():
        if not isinstance(result, UgroError) and result.kept:
            note(
                f"{result.node}: the environment that was there is now {result.kept}; "
                "remove it when all is well"
            )
    return None


def show_environments(
    states: Mapping[str, State | UgroError], *, as_json: bool
) -> None:
    """Print a row for each node: its environment, and the change a sync would make."""
    if as_json:
        nodes = {name: _state_as_json(state) for name, state in states.items()}
        return show_json({"nodes": nodes})
    rows = [_survey_row(name, state) for name, state in states.items()]
    columns(open_console(), [SURVEY_HEADS, *rows])
    return None


def _sync_row(name: str, result: Synced | UgroError) -> list[str]:
    if isinstance(result, UgroError):
        return ["✗", name, "", "", "", "not brought up to date"]
    if result.why is None:
        return ["✓", name, "", str(result.after), "", "as it should be"]
    made = f"made, {byte_size(result.bytes)}: {result.why}"
    return [
        "✓",
        name,
        str(result.before),
        str(result.after),
        f"{result.seconds:.1f}",
        made,
    ]


def _survey_row(name: str, state: State | UgroError) -> list[str]:
    if isinstance(state, UgroError):
        return ["✗", name, "", state.text.partition("\n")[0].removeprefix(f"{name}: ")]
    found = str(state.fingerprint)
    if state.recipe is None:
        return ["✓", name, found, "left alone: its manager is `existing`"]
    if not state.why:
        return ["✓", name, found, "left as it is"]
    return [
        "✗",
        name,
        found,
        f"made by {state.recipe.manager} from {state.recipe.digest[:7]}: {state.why}",
    ]


def _synced_as_json(result: Synced | UgroError) -> object:
    if isinstance(result, UgroError):
        return _error_as_json(result)
    return msgspec.to_builtins(result)


def _state_as_json(state: State | UgroError) -> object:
    if isinstance(state, UgroError):
        return _error_as_json(state)
    return {"found": msgspec.to_builtins(state.fingerprint), "behind": state.why}


def _error_as_json(error: UgroError) -> object:
    return {"error": error.text, "exit_code": error.exit_code}
