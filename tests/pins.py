"""The releases that are pinned in requirements/."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
HASHED_PIN = re.compile(rf"{PIN.pattern}[^\n]*\\\n +--hash=sha256:[0-9a-f]{{64}}", re.MULTILINE)  # fmt: skip
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins_of(file: str) -> dict[str, str]:
    """{package: release} of a file of requirements."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    return {canonicalize_name(name): version for name, version in PIN.findall(text)}


def without_hash(file: str) -> list[str]:
    """The packages of a file of requirements whose files nothing is known of."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    hashed = {match[1] for match in HASHED_PIN.finditer(text)}
    return [name for name, _ in PIN.findall(text) if name not in hashed]


def too_new_for_the_oldest_python(file: str) -> dict[str, str]:
    """{package: the Pythons that it takes} of those that do not take the first release of the oldest that UGRO takes.

    A distribution stays with that release for years: Debian 12 has 3.11.2. Every package must be installed here.
    """
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    taken = {name: metadata(name)["Requires-Python"] or "" for name in pins_of(file)}
    return {
        name: said for name, said in taken.items() if oldest not in SpecifierSet(said)
    }
