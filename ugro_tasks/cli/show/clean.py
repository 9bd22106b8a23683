"""The output of `inv clean`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...text import printable_lines
from ..task import as_called
from .console import open_console, style
from .format import columns, show_json
from .values import byte_size

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...outputs.clean import Cleaning


def show_clean(found: Cleaning, *, as_json: bool) -> None:
    """Print the removals, the folders that stay with their reasons, and the sums."""
    if as_json:
        return show_json({"bytes": found.bytes_by_place, **msgspec.to_builtins(found)})
    console = open_console()
    if found.removals:
        console.print(style("would be removed" if found.dry_run else "removed", "bold"))
        rows = [[r.where, r.job_id, byte_size(r.bytes), r.path] for r in found.removals]
        columns(console, rows, heads=False, indent="  ")
    if found.stays:
        console.print(style("stays", "bold"))
        rows = [[stay.job_id, as_called(stay.reason)] for stay in found.stays]
        columns(console, rows, heads=False, indent="  ")
    for node, count in found.foreign.items():
        console.print(
            f"{printable_lines(node)}: {count} job folders of no experiment here; they stay"
        )
    for reason in found.unreached.values():
        console.print(style("not asked:", "red"), f" {printable_lines(reason)}")
    console.print(_sum_of(found))
    return None


def _sum_of(found: Cleaning) -> str:
    """Write the freed bytes, with the share of each place if there are several."""
    sizes = found.bytes_by_place
    done = "would be freed; nothing was removed" if found.dry_run else "freed"
    total = f"{byte_size(sum(sizes.values()))} {done}"
    if len(sizes) < 2:
        return total
    each = [
        f"{printable_lines(place)} {byte_size(size)}" for place, size in sizes.items()
    ]
    return f"{total}: {', '.join(each)}"
