"""The output of `inv agent.adopt`: what a job would run, and where."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ...text import printable_lines
from .format import note, show_json
from .launch import show_plan

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...jobs.adoption import Adoption


def show_adoption(found: Adoption, *, as_json: bool) -> None:
    """Print what the job's records say, all of it as text that nobody has proven."""
    if as_json:
        return show_json(found)
    record = found.record
    print(printable_lines(f"{found.job_id}  {found.state}, in {found.folder}"))
    words = shlex.join([record.script, *record.args])
    print(printable_lines(f"  {words}, code with the hash {record.code.sha256}"))
    for key, value in record.env.items():
        print(printable_lines(f"  with {key}={shlex.quote(value)}"))
    for node in found.nodes:
        where = f"{node.name} ({node.reached}), in {node.project}"
        by = f"by {node.python}, the training by {node.interpreter}"
        print(printable_lines(f"  on {where}, {by}"))
    if record.plan:
        show_plan(record.plan)
    if found.over:
        note("the job is over; adopting it allows gather, clean and --resume")
    else:
        note("the job is not over; an agent will go on with it, and run this")
    return None
