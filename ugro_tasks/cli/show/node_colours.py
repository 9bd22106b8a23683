"""The colours of the nodes' names beside their lines."""

from __future__ import annotations

from .console import Style

NODE_COLOURS: tuple[Style, ...] = (
    "cyan",
    "magenta",
    "yellow",
    "green",
    "blue",
    "bright_red",
)


def node_colour(rank: int) -> Style:
    """Return the colour of a rank's node; beyond six nodes they come again."""
    return NODE_COLOURS[rank % len(NODE_COLOURS)]
