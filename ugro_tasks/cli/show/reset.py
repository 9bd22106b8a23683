"""The output of `inv reset`, and of `inv stop` where the nodes themselves are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import HostError
from ...text import printable_lines
from .console import open_console
from .format import note, show_json

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...hosts.answers import Process


def show_reset(ended: dict[str, list[Process] | HostError], *, as_json: bool) -> None:
    """Print the processes ended on each node."""
    if as_json:
        nodes = {node: _as_json(answer) for node, answer in ended.items()}
        return show_json({"nodes": nodes})
    console = open_console()
    for node, answer in ended.items():
        if isinstance(answer, HostError):
            note(answer.text)
            continue
        for process in answer:
            words = (
                f"{node}: ended pid {process.pid} of {process.job}: {process.command}"
            )
            console.print(printable_lines(words))
        if not answer:
            console.print(f"{node}: nothing of UGRO was running")
    return None


def show_told(ended: dict[str, list[Process] | HostError], *, as_json: bool) -> None:
    """Print what nodes were told to end; raises the error of the first that could not be told."""
    show_reset(ended, as_json=as_json)
    for answer in ended.values():
        if isinstance(answer, HostError):
            raise answer


def _as_json(answer: list[Process] | HostError) -> object:
    if isinstance(answer, HostError):
        return {"error": answer.text}
    return {"ended": answer}
