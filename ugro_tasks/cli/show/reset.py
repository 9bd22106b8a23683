"""What a reset ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import HostError
from ...text import printable
from .format import note, show_json

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    pass


def show_reset(ended: dict[str, list[dict[str, Any]] | HostError], *, as_json: bool) -> None:
    """What was ended on each node."""
    if as_json:
        plain = {
            node: {"error": a.text} if isinstance(a, HostError) else {"ended": a} for node, a in ended.items()
        }
        return show_json(plain)
    for node, answer in ended.items():
        if isinstance(answer, HostError):
            note(answer.text)
            continue
        for process in answer:
            print(printable(f"{node}: ended pid {process['pid']} of {process['job']}: {process['command']}"))
        if not answer:
            print(f"{node}: nothing of UGRO was running")
    return None
