"""What a clean removed, and what it left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .format import byte_size, columns, open_console, show_json, shown

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ...outputs.clean import Cleaning


# ---- room on the disks ----


def show_clean(found: Cleaning, *, as_json: bool) -> None:
    """What was removed or would be, what stays and why, and the sums."""
    sums = found.bytes_by_place
    if as_json:
        return show_json({"bytes": sums, **msgspec.to_builtins(found)})
    console = open_console()
    if found.removals:
        console.print("[bold]would be removed[/]" if found.dry_run else "[bold]removed[/]")
        rows = [[r.where, r.job_id, byte_size(r.bytes), r.path] for r in found.removals]
        columns(console, rows, heads=False, indent="  ")
    if found.stays:
        console.print("[bold]stays[/]")
        columns(console, [[stay.job_id, stay.reason] for stay in found.stays], heads=False, indent="  ")
    for node, count in found.foreign.items():
        console.print(f"{shown(node)}: {count} job folders of no experiment here; they stay")
    for words in found.unreached.values():
        console.print(f"[red]not asked:[/] {shown(words)}")
    each = ", ".join(f"{shown(place)} {byte_size(size)}" for place, size in sums.items()) or "nothing"
    done = "would be freed; nothing was removed" if found.dry_run else "freed"
    console.print(f"{byte_size(sum(sums.values()))} {done}" + (f": {each}" if len(sums) > 1 else ""))
    return None
