"""The rules of the training settings, by `section.key`, as in config/training_schema.yaml.

    shipped_rules()["training.seed"].fit("7")      # 7
    rules_for(root)                                # the same, with the overrides of the project in `root`

The class of a rule is in rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from .local import TRAINING_SCHEMA, shipped
from .rules import Rule
from .yaml_lines import Document

Rules = dict[str, Rule]


class Entry(NamedTuple):
    """One key of a file of sections, with its value as text."""

    section: str
    key: str
    value: Any
    where: str  # path, line and name

    @property
    def name(self) -> str:
        """Return the key with its section: `training.seed`."""
        return f"{self.section}.{self.key}"


@cache
def shipped_rules() -> Rules:
    """Return the rules shipped with UGRO. Raises UsageError if somebody has broken the file."""
    return _read(shipped(TRAINING_SCHEMA))


def rules_for(root: Path) -> Rules:
    """Return the shipped rules, overridden by those of the project in `root`.

    Raises UsageError with every fault in the project's file.
    """
    own = root / TRAINING_SCHEMA
    if not has_own_rules(root):
        return shipped_rules()
    if own.samefile(shipped(TRAINING_SCHEMA)):
        return shipped_rules()
    return {**shipped_rules(), **_read(own)}


def has_own_rules(root: Path) -> bool:
    """Tell whether the project in `root` has a schema of its own."""
    return (root / TRAINING_SCHEMA).is_file()


def entries(path: Path, faults: list[str]) -> Iterator[Entry]:
    """Yield the keys of a file; faults of the file itself are added to `faults`."""
    try:
        document = Document(path.read_text("utf-8-sig"))
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        faults.append(f"{path}: {why}")
        return
    for section, keys in document.data.items():
        if not isinstance(keys, dict):
            document.fault((section,), "must be a section of `key: value` lines")
            continue
        for key, value in keys.items():
            line = document.line((section, key))
            where = f"{path}, line {line}: {section}.{key}"
            yield Entry(section, key, value, where)
    faults += [f"{path}, line {fault.line}: {fault.text}" for fault in document.faults]


def refuse(faults: list[str]) -> None:
    """Raise UsageError if there is any fault, with a line for each."""
    if len(faults) == 1:
        raise UsageError(faults[0])
    if faults:
        head = f"the training settings cannot be used: {len(faults)} faults"
        raise UsageError("\n  ".join([head, *faults]))


def _read(path: Path) -> Rules:
    """Read the rules of one file. Raises UsageError with every fault in it."""
    faults: list[str] = []
    rules: Rules = {}
    for entry in entries(path, faults):
        try:
            rules[entry.name] = Rule.of_schema(entry.value)
        except (ValueError, TypeError, OverflowError) as error:
            faults.append(f"{entry.where}: {error}")
    refuse(faults)
    return rules
