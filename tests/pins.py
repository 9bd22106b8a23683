"""The releases that are pinned in requirements/."""

import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins_of(file: str) -> dict[str, str]:
    """{package: release} of a file of requirements."""
    lines = (ROOT / "requirements" / f"{file}.txt").read_text().splitlines()
    pinned = [
        line.split("==") for line in lines if line and not line.startswith(("#", "-r "))
    ]
    return {canonicalize_name(name): version for name, version in pinned}


def too_new_for_the_oldest_python(file: str) -> dict[str, str]:
    """{package: the Pythons that it takes} of those that do not take the first release of the oldest that UGRO takes.

    A distribution stays with that release for years: Debian 12 has 3.11.2. Every package must be installed here.
    """
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    taken = {name: metadata(name)["Requires-Python"] or "" for name in pins_of(file)}
    return {
        name: said for name, said in taken.items() if oldest not in SpecifierSet(said)
    }
