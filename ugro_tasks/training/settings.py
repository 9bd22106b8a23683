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
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..cluster.local import TRAINING_SCHEMA, shipped, shipped_scripts
from ..cluster.model import Cluster
from ..cluster.rules import Misfit, Quoted, Rule, meant, shown
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
OF_UGRO = (*FLAGS.values(), "training.batch_size_per_gpu")


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
    found = _Collected(_rules(cluster.root, script or cluster.training.script))
    files = _files(cluster.root)
    for path in files:
        found.take(entries(path, found.faults))
    found.faults += _impossible_needs(found.rules)
    if base:
        found.take(_of_record(base))
    else:
        where = _in_cluster_file(cluster)
        found.take(_of_sections(cluster.training.settings), where)
    flags = zip(FLAGS, (model, dataset, epochs, learning_rate), strict=True)
    found.take(_of_flags(flags))
    said = []
    for entry in found.entries_of(sets, files[-1]):
        said.append(entry)
        found.take([entry])
    refuse(found.faults)
    refuse([*_without_effect(found, said), *_of_batch_sizes(cluster, found.settings)])
    return found.settings


def _rules(root: Path, script: str) -> Rules:
    """Return the rules of a project for a script.

    The shipped rules are for the shipped scripts. A project with another script may have a schema of its own; without
    one, only the settings used by UGRO itself have a rule.
    """
    rules = rules_for(root)
    of_ours = {path.name for path in shipped_scripts().glob("*.py")}
    if has_own_rules(root) or script in of_ours:
        return rules
    return {name: rules[name] for name in OF_UGRO}


def _files(root: Path) -> list[Path]:
    """Return the files of defaults; the last one is shown to users."""
    own = root / FILE
    files = [shipped(FILE)]
    if own.is_file() and not own.samefile(files[0]):
        files.append(own)
    return files


class _Collected:
    """The settings collected so far, the rule of each, and all faults."""

    def __init__(self, rules: Rules) -> None:
        self.rules = dict(rules)
        self.settings: Settings = {}
        self.faults: list[str] = []

    def take(
        self,
        said: Iterable[Entry],
        where: Callable[[Entry], str] = lambda entry: entry.where,
    ) -> None:
        """Add the values that obey their rules; a key without a rule gets one of its value's kind."""
        for entry in said:
            try:
                rule = self.rules.get(entry.name)
                rule = rule or Rule.of_default(meant(entry.value))
                value = rule.fit(entry.value)
            except Misfit as error:
                self.faults.append(f"{where(entry)}: {error}")
                # The key exists, so `--set` of it is no second fault.
                self.rules.setdefault(entry.name, Rule("any"))
                continue
            self.rules.setdefault(entry.name, rule)
            self.settings.setdefault(entry.section, {})[entry.key] = value

    def entries_of(self, sets: Iterable[str], source: Path) -> Iterator[Entry]:
        """Yield the entries of `--set` with known keys; `source` is the file named for unknown ones."""
        for pair in sets:
            where = f"--set {shown(pair)[1:-1]}"
            name, equals, text = pair.partition("=")
            section, dot, key = name.strip().partition(".")
            if not (equals and dot and section and key):
                use = "use SECTION.KEY=VALUE, e.g. training.warmup_steps=50"
                self.faults.append(f"{where}: {use}")
            elif f"{section}.{key}" not in self.rules:
                unknown = _unknown(section, key, self.rules)
                self.faults.append(f"{where}: {unknown} (see {source})")
            else:
                try:
                    yield Entry(section, key, value_of(text), where)
                except ValueError as error:
                    self.faults.append(f"{where}: {error}")


def _of_record(base: Settings) -> Iterator[Entry]:
    """Yield the settings of a job to go on from; their values have a type already."""
    for entry in _of_sections(base):
        where = f"the job to go on from: {entry.name}"
        yield entry._replace(value=_as_it_is(entry.value), where=where)


def _as_it_is(value: Any) -> Any:
    """Mark text as quoted, so that "7" stays text."""
    if isinstance(value, list):
        return [_as_it_is(item) for item in value]
    return Quoted(value) if isinstance(value, str) else value


def _of_sections(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Entry]:
    for section, keys in settings.items():
        for key, value in keys.items():
            yield Entry(section, key, value, where="")


def _in_cluster_file(cluster: Cluster) -> Callable[[Entry], str]:
    """Return a function from an entry to its place in the cluster file."""

    def where(entry: Entry) -> str:
        # Late, and only for a fault: the forms are a fifth of a command's start.
        from ..cluster.schema import place_of

        return place_of(entry.name, cluster.source)

    return where


def _of_flags(flags: Iterable[tuple[str, Any]]) -> Iterator[Entry]:
    for flag, value in flags:
        if value is not None:
            section, _, key = FLAGS[flag].partition(".")
            yield Entry(section, key, value, f"{flag} {shown(str(value))[1:-1]}")


def _unknown(section: str, key: str, names: Iterable[str]) -> str:
    """Say that there is no such setting, and suggest a similar one."""
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(name.partition(".")[0], []).append(name)
    everything = [name for keys in known.values() for name in keys]
    elsewhere = [name for name in everything if name.endswith(f".{key}")]
    near = elsewhere or get_close_matches(f"{section}.{key}", everything, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if section not in known:
        return f"there is no section {shown(section)}{hint or '; there is ' + ', '.join(known)}"
    keys = ", ".join(name.partition(".")[2] for name in known[section])
    return f"{section} has no key {shown(key)}{hint or '; it has ' + keys}"


# ---- between keys ----


def _impossible_needs(rules: Rules) -> Iterator[str]:
    """Yield a fault for each need in the schema of an unknown setting or of an impossible value."""
    for name, rule in rules.items():
        for other, wanted in rule.needs.items():
            try:
                rules[other].fit(wanted)
            except (KeyError, Misfit):
                yield f"{TRAINING_SCHEMA}: {name} needs {other}={wanted}, which cannot be"


def _without_effect(found: _Collected, said: Iterable[Entry]) -> Iterator[str]:
    """Yield a fault for each `--set` made ineffective by another setting; a switch set to off needs none."""
    settings = found.settings
    for entry in said:
        needs = found.rules[entry.name].needs
        if not needs or settings[entry.section][entry.key] is False:
            continue
        for other, wanted in needs.items():
            section, _, key = other.partition(".")
            value = settings.get(section, {}).get(key)
            if value != found.rules[other].fit(wanted):
                yield _has_no_effect(entry, other, value, wanted)
        if entry.name in ("quantization.enabled", "quantization.bits"):
            # Two halves of one switch; the model's half does not matter for 8 bits.
            quantised = settings["quantization"]["enabled"]
            four = settings["quantization"]["bits"] == 4
            if quantised and four and not settings["model"]["load_in_4bit"]:
                yield _has_no_effect(entry, "model.load_in_4bit", False, "true")


def _has_no_effect(entry: Entry, other: str, value: Any, wanted: str) -> str:
    now = {True: "true", False: "false", None: "null"}.get(value, value)
    return f"{entry.where} has no effect: {other} is {now}; add --set {other}={wanted}"


def _of_batch_sizes(cluster: Cluster, settings: Settings) -> Iterator[str]:
    """Yield a fault for batch sizes by node without one of the launch's nodes."""
    try:
        requested_sizes(cluster, settings)
    except UsageError as error:
        yield error.text
