"""The output of `inv agent.adopt`: what a job would run, and where."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ...text import printable_lines
from .format import note, show_json

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...jobs.adoption import Adoption


def show_adoption(found: Adoption, *, as_json: bool) -> None:
    """Print what the job's records say, all of it as text that nobody has proven."""
    if as_json:
        return show_json(found)
    print(printable_lines(f"{found.job_id}  {found.state}, in {found.folder}"))
    print(printable_lines(f"  {found.script}, code with the hash {found.code_sha256}"))
    for node in found.nodes:
        where = f"{node.name} ({node.reached}), in {node.project}"
        print(printable_lines(f"  on {where}, by {node.python}"))
        if node.command:
            print(printable_lines(f"    {shlex.join(node.command)}"))
    if found.ends_at_once:
        note("the job is over; adopting it allows gather, clean and --resume")
    else:
        note("the job is not over; an agent will go on with it, and run this")
    return None
