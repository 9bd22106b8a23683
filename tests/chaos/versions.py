"""UGRO in another version: a copy of the package that says another number and has another program for nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A field of records that the version under test does not know, and must keep.
NEW_FIELD = "of_another_version"
CHANGES = {
    "__init__.py": ("__version__ = ", "__version__ = '99.0.0'  # in the place of "),
    # So node.zip differs as well.
    "node/main.py": ("from __future__", "# Another version.\nfrom __future__"),
    "jobs/state.py": (
        "    format: int = FIRST_FORMAT\n",
        f"    format: int = FIRST_FORMAT\n    {NEW_FIELD}: int = 99\n",
    ),
}


def make_another_version(folder: Path) -> None:
    """Copy the package into a folder that is not there yet, and change what makes it another version."""
    kept = shutil.ignore_patterns("__pycache__")
    for name in ("ugro_tasks", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=kept)
    for name, (old, new) in CHANGES.items():
        path = folder / "ugro_tasks" / name
        text = path.read_text("utf-8")
        assert old in text, f"{name} has no {old!r} any more"
        path.write_text(text.replace(old, new, 1), "utf-8")
