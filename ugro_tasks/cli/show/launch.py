"""The output of `inv launch --dry-run`, and the plan of a launch."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import msgspec

from ...jobs.plan import LaunchPlan
from ...text import printable
from .format import note, show_json

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...launch.dry_run import Rehearsal


def show_dry_run(found: Rehearsal, *, as_json: bool) -> None:
    """Print the plan of a launch, the environments it would build, and its refusals."""
    if as_json:
        return show_json({"fit": not found.refusals, **msgspec.structs.asdict(found)})
    show_plan(found.plan)
    for node, why in found.environments.items():
        note(f"a launch would first build the environment of {node}: {why}")
    for words in found.refusals:
        note(f"a launch would be refused: {words}")
    return None


def show_plan(plan: LaunchPlan) -> None:
    """Print every command in full."""
    print(
        f"{plan.job_id}: {plan.world_size} ranks meet at {plan.master_address} port {plan.master_port}"
    )
    for node in plan.nodes:
        place = f"{node.node} ({node.address}), in {node.folder}/code"
        print(printable(f"rank {node.rank} on {place}:"))
        if node.activation:
            activation = " ".join(map(_quoted, node.activation))
            print(f"  with what this tells: {activation}")
        assignments = [f"{key}={_quoted(value)}" for key, value in node.env.items()]
        variables = " ".join(assignments)
        command = " ".join(map(_quoted, node.argv))
        print(f"  {variables} {command}")
    from .memory import show_memory

    show_memory(plan)


def _quoted(word: str) -> str:
    """Quote the word for bash, with control characters as bash's own escapes."""
    is_plain = printable(word) == word and "\n" not in word
    if is_plain or word.isprintable():
        return shlex.quote(word)
    escaped = re.sub(r"[\\']", r"\\\g<0>", word)
    characters = [c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped]
    return f"$'{''.join(characters)}'"
