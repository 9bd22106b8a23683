"""The training settings of a launch: what a script finds in UGRO_SETTINGS.

    resolve(cluster, learning_rate=1e-3, sets=["training.warmup_steps=50"])
    # {"model": {"name": ..., ...}, "training": {"learning_rate": 0.001, "warmup_steps": 50, ...}, ...}

Each counts over the one before: the shipped config/training_defaults.yaml, the one in the cluster's own root, the
cluster file's `training:` as far as it is written there, the launch's flags, `--set`. The two files are the schema: a
key that is in neither cannot be set, and a value must be of the kind that the file has; null there takes any one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..cluster.model import PACKAGE, Cluster
from ..cluster.values import checked_batch_size, shown
from ..cluster.yaml_lines import Document, Loader, refuse_unreadable
from ..errors import UsageError

Settings = dict[str, dict[str, Any]]

FILE = "config/training_defaults.yaml"
BATCH_SIZE = ("training", "batch_size_per_gpu")
# Where the settings have what the cluster file and the flags call otherwise.
PLACES = {
    "model": ("model", "name"),
    "dataset": ("dataset", "name"),
    "epochs": ("training", "num_epochs"),
    "learning_rate": ("training", "learning_rate"),
    "batch_size_per_gpu": BATCH_SIZE,
    "gradient_accumulation_steps": ("training", "gradient_accumulation_steps"),
    "max_seq_length": ("model", "max_seq_length"),
}
AsWritten: type[yaml.BaseLoader] | type[yaml.CBaseLoader] = getattr(
    yaml, "CBaseLoader", yaml.BaseLoader
)
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "one value",
}


def resolve(
    cluster: Cluster,
    *,
    model: str | None = None,
    dataset: str | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    sets: Sequence[str] = (),
    base: Settings | None = None,
) -> Settings:
    """The settings by section and key; None is a flag that was not given.

    `base` are those of a job to go on from; they stand where the cluster file would. Raises UsageError for a file or a
    `--set` that cannot be used.
    """
    settings, source = _schema(cluster.root)
    schema = {section: dict(keys) for section, keys in settings.items()}
    for section, keys in _sound(base or {}, schema).items():
        settings.setdefault(section, {}).update(keys)
    flags = {
        "model": model,
        "dataset": dataset,
        "epochs": epochs,
        "learning_rate": learning_rate,
    }
    said = [] if base else list(_of_cluster(cluster))
    said += [
        (PLACES[name], value) for name, value in flags.items() if value is not None
    ]
    for (section, key), value in said:
        settings[section][key] = value
    for pair in sets:
        section, key, value = _parsed(pair, schema, source)
        settings[section][key] = value
    return settings


def _sound(base: Settings, schema: Settings) -> Settings:
    """The settings of a job to go on from, if each is still of its kind. Raises UsageError: a record may be damaged."""
    for section, keys in base.items():
        for key, value in keys.items():
            try:
                _refuse_nested(value, (section, key))
                if key in schema.get(section, {}):
                    _fit(value, value, schema[section][key], (section, key))
            except ValueError as error:
                raise UsageError(
                    f"the job to go on from: {section}.{key}: {error}"
                ) from error
    return base


def _schema(root: Path) -> tuple[Settings, Path]:
    """The defaults of both files, and the one that a user would look into."""
    installed = PACKAGE / FILE
    shipped = installed if installed.is_file() else PACKAGE.parent / FILE
    defaults = _read(shipped, {})
    own = root / FILE
    if not own.is_file() or own.samefile(shipped):
        return defaults, shipped
    for section, keys in _read(own, defaults).items():
        defaults.setdefault(section, {}).update(keys)
    return defaults, own


def _read(path: Path, defaults: Settings) -> Settings:
    """What a file says, each value of the kind that `defaults` has for it. Raises UsageError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"{path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from error
    document = Document(text, lambda name, _: f"${{{name}}}")
    if document.faults:
        line, fault = document.faults[0]
        raise UsageError(f"{path}, line {line}: {fault}")
    try:
        typed, written = _loaded(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {error}") from error
    found: Settings = {}
    for section, keys in typed.items():
        if not isinstance(keys, dict):
            line = document.line((section,))
            raise UsageError(
                f"{path}, line {line}: {section} must be a section of `key: value` lines"
            )
        if odd := [key for key in (section, *keys) if not isinstance(key, str)]:
            line = document.line((section,))
            raise UsageError(
                f"{path}, line {line}: the key {odd[0]!r} is no text; put it in quotes"
            )
        found[section] = {}
        for key, value in keys.items():
            known = defaults.get(section, {})
            try:
                _refuse_nested(value, (section, key))
                fitted = (
                    _fit(value, written[section][key], known[key], (section, key))
                    if key in known
                    else value
                )
            except ValueError as error:
                line = document.line((section, key))
                raise UsageError(
                    f"{path}, line {line}: {section}.{key}: {error}"
                ) from error
            found[section][key] = fitted
    return found


def _of_cluster(cluster: Cluster) -> Iterator[tuple[tuple[str, str], Any]]:
    """What is written in the cluster file, and not only its default."""
    training = cluster.training
    for name in training.written:
        if name in PLACES:
            yield PLACES[name], getattr(training, name)
        elif name.startswith("lora."):
            key = name.removeprefix("lora.")
            value = getattr(training.lora, key)
            yield ("lora", key), list(value) if isinstance(value, tuple) else value


def _parsed(pair: str, schema: Settings, source: Path) -> tuple[str, str, Any]:
    """(section, key, value) of a `--set`. Raises UsageError."""
    name, equals, text = pair.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UsageError(
            f"--set {shown(pair)[1:-1]}: use SECTION.KEY=VALUE, e.g. training.warmup_steps=50"
        )
    if key not in schema.get(section, {}):
        raise UsageError(
            f"--set {shown(pair)[1:-1]}: {_unknown(section, key, schema)}; see {source}"
        )
    try:
        value, written = _loaded(text)
        _refuse_nested(value, (section, key))
        written = written if isinstance(value, list) else text.strip()
        return section, key, _fit(value, written, schema[section][key], (section, key))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(
            f"--set {shown(pair)[1:-1]}: {shown(text)} is not YAML: {problem}"
        ) from error
    except ValueError as error:
        raise UsageError(f"--set {shown(pair)[1:-1]}: {error}") from error


def _loaded(text: str) -> tuple[Any, Any]:
    """The same twice: as YAML has it, and as it was written, for where a `no` or an 007 is text.

    Raises ValueError and YAMLError.
    """
    refuse_unreadable(text)
    try:
        return yaml.load(text, Loader), yaml.load(text, AsWritten)  # noqa: S506
    except (LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{shown(text)} is not what its tag says"
        ) from error  # as in !!bool x


def _refuse_nested(value: Any, place: tuple[str, str]) -> None:
    """Raise ValueError for what is neither a value nor a list of values."""
    items = value if isinstance(value, list) else [value]
    if place != BATCH_SIZE and any(isinstance(item, (dict, list)) for item in items):
        raise ValueError("must be one value or a list of values")


def _fit(value: Any, text: Any, default: Any, place: tuple[str, str]) -> Any:
    """The value as one of the kind of its default; `text` is how it was written. Raises ValueError."""
    if place == BATCH_SIZE:
        return checked_batch_size(value)
    if isinstance(default, list):
        if not isinstance(value, list) or not value:
            raise ValueError(
                f"must be a list like [{', '.join(map(str, default))}], not {shown(text)}"
            )
        pairs = zip(value, text, strict=True)
        return (
            [_scalar(item, written, type(default[0])) for item, written in pairs]
            if default
            else value
        )
    if default is None:
        if isinstance(value, list):
            raise ValueError(f"must be one value, not {shown(text)}")
        return value
    return _scalar(value, text, type(default))


def _scalar(value: Any, text: Any, kind: type) -> Any:
    if kind is str and isinstance(text, str) and text:
        # Quotes are YAML's; a plain `no` is a word here.
        return value if isinstance(value, str) else text
    if kind in (bool, int) and type(value) is kind:
        return value
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)  # of text, too: YAML takes 1e-8 for a word
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(
        f"must be {KINDS.get(kind, 'of the kind of its default')}, not {shown(text)}"
    )


def _unknown(section: str, key: str, schema: Mapping[str, Mapping[str, Any]]) -> str:
    names = [f"{other}.{name}" for other, keys in schema.items() for name in keys]
    elsewhere = [name for name in names if name.endswith(f".{key}")]
    near = elsewhere or get_close_matches(f"{section}.{key}", names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if section not in schema:
        return f"there is no section {shown(section)}{hint or '; there is ' + ', '.join(schema)}"
    return f"{section} has no key {shown(key)}{hint or '; it has ' + ', '.join(schema[section])}"
