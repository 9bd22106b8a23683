"""The training settings of a launch, given to the script in UGRO_SETTINGS.

    resolve(cluster, learning_rate=1e-3, sets=["training.warmup_steps=50"])
    # {"model": {"name": ..., ...}, "training": {"learning_rate": 0.001, "warmup_steps": 50, ...}, ...}

Each source overrides the one before: the shipped config/training_defaults.yaml, the one in the cluster's own root, the
keys given in the cluster file's `training:`, the launch's flags, `--set`. The rules of all values are in
config/training_schema.yaml. A key without a rule must be in one of the two files of defaults, and takes the kind of
its default; a default of null allows any single value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cluster.local import TRAINING_SCHEMA, shipped, shipped_scripts
from ..cluster.model import Cluster
from ..cluster.rules import Misfit, Quoted, Rule, meant, near, parts_of_set, shown
from ..cluster.training_schema import (
    Entry,
    Rules,
    entries,
    has_own_rules,
    refuse,
    rules_for,
)
from ..cluster.yaml_lines import value_of
from ..errors import UsageError
from .batch_sizes import requested_sizes

Settings = dict[str, dict[str, Any]]

FILE = "config/training_defaults.yaml"
# {flag of the launch: setting}
FLAGS = {
    "--model": "model.name",
    "--dataset": "dataset.name",
    "--epochs": "training.num_epochs",
    "--lr": "training.learning_rate",
}
# The settings used by UGRO itself, with any script.
USED_BY_UGRO = (*FLAGS.values(), "training.batch_size_per_gpu")


def resolve(
    cluster: Cluster,
    *,
    script: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    epochs: int | str | None = None,
    learning_rate: float | str | None = None,
    sets: Sequence[str] = (),
    base: Settings | None = None,
) -> Settings:
    """Return the settings by section and key.

    None for a flag means not given, for `script` the cluster file's. `base` has the settings of a job to go on from,
    and replaces the cluster file's. Raises UsageError with every fault in the files, the flags and `--set`, each with
    its place.
    """
    rules = _rules(cluster.root, script or cluster.training.script)
    collected = _Collected(rules)
    files = _files(cluster.root)
    for path in files:
        collected.add(entries(path, collected.faults))
    collected.faults += _impossible_needs(collected.rules)
    if base:
        collected.add(_entries_of_job(base))
    else:
        place = _place_in(cluster)
        collected.add(_entries_of_sections(cluster.training.settings), place)
    flags = {
        "--model": model,
        "--dataset": dataset,
        "--epochs": epochs,
        "--lr": learning_rate,
    }
    collected.add(_entries_of_flags(flags))
    set_entries = []
    for entry in collected.entries_of_sets(sets, files[-1]):
        set_entries.append(entry)
        collected.add([entry])
    refuse(collected.faults)
    faults = list(_without_effect(collected, set_entries))
    faults += _faults_of_batch_sizes(cluster, collected.settings)
    refuse(faults)
    return collected.settings


def _rules(root: Path, script: str) -> Rules:
    """Return the rules of a project for a script.

    The shipped rules are for the shipped scripts. A project with another script may have a schema of its own; without
    one, only the settings used by UGRO itself have a rule.
    """
    rules = rules_for(root)
    shipped_names = {path.name for path in shipped_scripts().glob("*.py")}
    if has_own_rules(root) or script in shipped_names:
        return rules
    return {name: rules[name] for name in USED_BY_UGRO}


def _files(root: Path) -> list[Path]:
    """Return the files of defaults; the last one is shown to users."""
    shipped_file = shipped(FILE)
    own_file = root / FILE
    if own_file.is_file() and not own_file.samefile(shipped_file):
        return [shipped_file, own_file]
    return [shipped_file]


class _Collected:
    """The settings collected so far, the rule of each, and all faults."""

    def __init__(self, rules: Rules) -> None:
        self.rules = dict(rules)
        self.settings: Settings = {}
        self.faults: list[str] = []

    def add(
        self,
        new_entries: Iterable[Entry],
        place: Callable[[Entry], str] = lambda entry: entry.where,
    ) -> None:
        """Add the values that obey their rules; a key without a rule gets one of its value's kind."""
        for entry in new_entries:
            rule = self.rules.get(entry.name)
            if rule is None:
                rule = Rule.of_default(meant(entry.value))
            try:
                value = rule.fit(entry.value)
            except Misfit as error:
                self.faults.append(f"{place(entry)}: {error}")
                # The key exists, so `--set` of it is no second fault.
                self.rules.setdefault(entry.name, Rule("any"))
                continue
            self.rules.setdefault(entry.name, rule)
            section = self.settings.setdefault(entry.section, {})
            section[entry.key] = value

    def entries_of_sets(self, sets: Iterable[str], source: Path) -> Iterator[Entry]:
        """Yield the entries of `--set` with known keys; `source` is the file named for unknown ones."""
        for pair in sets:
            where = f"--set {shown(pair)[1:-1]}"
            parts = parts_of_set(pair)
            if parts is None:
                use = "use SECTION.KEY=VALUE, e.g. training.warmup_steps=50"
                self.faults.append(f"{where}: {use}")
                continue
            section, key, text = parts
            if f"{section}.{key}" not in self.rules:
                unknown = _unknown(section, key, self.rules)
                self.faults.append(f"{where}: {unknown} (see {source})")
                continue
            try:
                value = value_of(text)
            except ValueError as error:
                self.faults.append(f"{where}: {error}")
                continue
            yield Entry(section, key, value, where)


def _entries_of_job(base: Settings) -> Iterator[Entry]:
    """Yield the settings of a job to go on from; their values have a type already."""
    for entry in _entries_of_sections(base):
        where = f"the job to go on from: {entry.name}"
        yield entry._replace(value=_quoted(entry.value), where=where)


def _quoted(value: Any) -> Any:
    """Mark text as quoted, so that "7" stays text."""
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, str):
        return Quoted(value)
    return value


def _entries_of_sections(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Entry]:
    for section, keys in settings.items():
        for key, value in keys.items():
            yield Entry(section, key, value, where="")


def _place_in(cluster: Cluster) -> Callable[[Entry], str]:
    """Return a function from an entry to its place in the cluster file."""

    def place(entry: Entry) -> str:
        # Late, and only for a fault: the forms are a fifth of a command's start.
        from ..cluster.schema import place_of

        return place_of(entry.name, cluster.source)

    return place


def _entries_of_flags(flags: Mapping[str, Any]) -> Iterator[Entry]:
    for flag, value in flags.items():
        if value is None:
            continue
        section, _, key = FLAGS[flag].partition(".")
        unquoted = shown(str(value))[1:-1]
        yield Entry(section, key, value, f"{flag} {unquoted}")


def _unknown(section: str, key: str, names: Iterable[str]) -> str:
    """Say that there is no such setting, and suggest a similar one."""
    keys_of: dict[str, list[str]] = {}
    for name in names:
        its_section, _, its_key = name.partition(".")
        keys_of.setdefault(its_section, []).append(its_key)
    known = [f"{name}.{its_key}" for name, keys in keys_of.items() for its_key in keys]
    alike = [name for name in known if name.endswith(f".{key}")]
    hint = f"; did you mean {alike[0]}?" if alike else near(f"{section}.{key}", known)
    if section not in keys_of:
        hint = hint or f"; there is {', '.join(keys_of)}"
        return f"there is no section {shown(section)}{hint}"
    hint = hint or f"; it has {', '.join(keys_of[section])}"
    return f"{section} has no key {shown(key)}{hint}"


# ---- between keys ----


def _impossible_needs(rules: Rules) -> Iterator[str]:
    """Yield a fault for each need in the schema of an unknown setting or of an impossible value."""
    for name, rule in rules.items():
        for other, wanted in rule.needs.items():
            try:
                rules[other].fit(wanted)
            except (KeyError, Misfit):
                yield f"{TRAINING_SCHEMA}: {name} needs {other}={wanted}, which cannot be"


def _without_effect(
    collected: _Collected, set_entries: Iterable[Entry]
) -> Iterator[str]:
    """Yield a fault for each `--set` made ineffective by another setting; a switch set to off needs none."""
    settings = collected.settings
    for entry in set_entries:
        needs = collected.rules[entry.name].needs
        if not needs or settings[entry.section][entry.key] is False:
            continue
        for other, wanted in needs.items():
            section, _, key = other.partition(".")
            value = settings.get(section, {}).get(key)
            if value != collected.rules[other].fit(wanted):
                yield _has_no_effect(entry, other, value, wanted)
        if entry.name in ("quantization.enabled", "quantization.bits"):
            # Two halves of one switch; the model's half does not matter for 8 bits.
            quantization = settings["quantization"]
            in_4_bits = quantization["enabled"] and quantization["bits"] == 4
            if in_4_bits and not settings["model"]["load_in_4bit"]:
                yield _has_no_effect(entry, "model.load_in_4bit", False, "true")


def _has_no_effect(entry: Entry, other: str, value: Any, wanted: str) -> str:
    now = {True: "true", False: "false", None: "null"}.get(value, value)
    return f"{entry.where} has no effect: {other} is {now}; add --set {other}={wanted}"


def _faults_of_batch_sizes(cluster: Cluster, settings: Settings) -> Iterator[str]:
    """Yield a fault for batch sizes by node without one of the launch's nodes."""
    try:
        requested_sizes(cluster, settings)
    except UsageError as error:
        yield error.text
