"""What a user sees: tables, lines, progress, colours. Plain text where stdout is no terminal; JSON where asked for.

Nothing that came from a node reaches the terminal raw. A part is loaded when something of it is used: each command
needs one or two of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .environments import BuildLines, environment_states, environments
    from .nodes import health, resets
    from .outcomes import cleaning, results
    from .plots import draw
    from .runs import job, jobs, log_tails, rehearsal, show_plan
    from .terminal import (
        Percentages,
        agree,
        clock,
        columns,
        duration,
        note,
        open_console,
        show_json,
        shown,
        waiting,
    )

_PARTS = {
    "environments": ("BuildLines", "environment_states", "environments"),
    "nodes": ("health", "resets"),
    "outcomes": ("cleaning", "results"),
    "plots": ("draw",),
    "runs": ("job", "jobs", "log_tails", "rehearsal", "show_plan"),
    "terminal": (
        "Percentages", "agree", "clock", "columns", "duration", "note", "open_console", "show_json", "shown", "waiting",
    ),
}  # fmt: skip

__all__ = [
    "BuildLines", "Percentages", "agree", "cleaning", "clock", "columns", "draw", "duration",
    "environment_states", "environments", "health", "job", "jobs", "log_tails", "note", "open_console", "rehearsal",
    "resets", "results", "show_json", "show_plan", "shown", "waiting",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for part, names in _PARTS.items():
        if name in names:
            loaded = import_module(f".{part}", __name__)
            # All of them, and not only the one: a function may have the name of its part.
            globals().update((each, getattr(loaded, each)) for each in names)
            return globals()[name]
    raise AttributeError(name)
