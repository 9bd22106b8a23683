"""The settings of a run started by hand, without UGRO: from the files of config/, flags and --set.

The rules are in config/training_schema.yaml, and UGRO itself checks by the same code: rules.py is a link to its file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .faults import Fault, in_one_line
from .rules import PLAIN_TAGS, Misfit, Quoted, Rule, meant, near, parts_of_set

CONFIG = Path(__file__).resolve().parents[2] / "config"
DEFAULTS = CONFIG / "training_defaults.yaml"
SCHEMA = CONFIG / "training_schema.yaml"
FLAGS = {
    "model_name": "model.name",
    "dataset_name": "dataset.name",
    "num_epochs": "training.num_epochs",
    "learning_rate": "training.learning_rate",
}


class Entry(NamedTuple):
    """One value as text, with its place."""

    where: str
    name: str  # section.key
    value: Any


def settings_by_hand(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings by section and key; raises Fault for the first unusable value."""
    rules = _rules()
    settings: dict[str, dict[str, Any]] = {}
    for entry in _entries_of_file(DEFAULTS):
        if entry.name not in rules:
            rules[entry.name] = Rule.of_default(meant(entry.value))
        _add(entry, rules[entry.name], settings)
    for entry in _overrides(options):
        if entry.name not in rules:
            hint = near(entry.name, rules)
            raise Fault(f"{entry.where}: there is no setting {entry.name}{hint}")
        _add(entry, rules[entry.name], settings)
    return settings


def _add(entry: Entry, rule: Rule, settings: dict[str, dict[str, Any]]) -> None:
    """Add a value in its rule's type to the settings. Raises Fault."""
    try:
        value = rule.fit(entry.value)
    except Misfit as error:
        raise Fault(f"{entry.where}: {entry.name} {error}") from error
    section, _, key = entry.name.partition(".")
    settings.setdefault(section, {})[key] = value


def _rules() -> dict[str, Rule]:
    """Read {section.key: rule} from the schema; empty without one. Raises Fault."""
    rules: dict[str, Rule] = {}
    if not SCHEMA.is_file():
        return rules
    for entry in _entries_of_file(SCHEMA):
        try:
            rules[entry.name] = Rule.of_schema(entry.value)
        except ValueError as error:
            raise Fault(f"{entry.where}: {entry.name}: {error}") from error
    return rules


def _overrides(options: argparse.Namespace) -> Iterator[Entry]:
    """Yield the values of --config, the flags and --set; later ones override earlier ones. Raises Fault."""
    if options.config:
        yield from _entries_of_file(Path(options.config))
    for option, name in FLAGS.items():
        value = getattr(options, option)
        if value is not None:
            flag = "--" + option.replace("_", "-")
            yield Entry(flag, name, value)
    for pair in options.set:
        where = f"--set {pair}"
        parts = parts_of_set(pair)
        if parts is None:
            raise Fault(
                f"{where}: write SECTION.KEY=VALUE, e.g. training.warmup_steps=50"
            )
        section, key, text = parts
        node = _parsed(text, where)
        value = "" if node is None else _plain(node, where)
        yield Entry(where, f"{section}.{key}", value)


# ---- YAML; a value stays text until its rule gives it a type ----


def _entries_of_file(path: Path) -> Iterator[Entry]:
    """Yield the values of a file of sections. Raises Fault."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Fault(f"{path}: {why}") from error
    seen = set()
    lines = "`key: value` lines"
    root = _parsed(text, str(path))
    for section, keys in _pairs(root, f"{path}: the file must hold {lines}"):
        message = f"{path}: {section.value}: must be a section of {lines}"
        for key, node in _pairs(keys, message):
            where = f"{path}, line {key.start_mark.line + 1}"
            name = f"{section.value}.{key.value}"
            if name in seen:
                raise Fault(f"{where}: {name} is given twice; keep one")
            seen.add(name)
            yield Entry(where, name, _plain(node, where))


def _parsed(text: str, where: str) -> yaml.Node | None:
    """Parse YAML into a tree of nodes, None for an empty text. Raises Fault."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or in_one_line(error)
        raise Fault(f"{where}{line}: not YAML: {problem}") from error


def _pairs(node: yaml.Node | None, message: str) -> list[tuple[Any, Any]]:
    """List the (key, value) nodes of a mapping. Raises Fault with the message for any other node."""
    if not isinstance(node, yaml.MappingNode):
        raise Fault(message)
    return list(node.value)


def _plain(node: yaml.Node, where: str) -> Any:
    """Convert a node into text, lists and mappings. Raises Fault for a tag."""
    if node.tag not in PLAIN_TAGS:
        raise Fault(f"{where}: a tag is not allowed; write the plain value")
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value, where) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where) for item in node.value]
    return Quoted(node.value) if node.style else str(node.value)
