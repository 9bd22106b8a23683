"""config/training_schema.yaml: the one statement of what a training setting may be, and what has to agree with it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from ugro_tasks.cluster.local import TRAINING_SCHEMA
from ugro_tasks.cluster.rules import Misfit, Quoted, Rule, meant
from ugro_tasks.cluster.schema import LoraSection, TrainingSection
from ugro_tasks.cluster.training_schema import entries, shipped_rules
from ugro_tasks.training.memory import DTYPE_BYTES, MOMENT_BYTES, QUANTISED_BYTES
from ugro_tasks.training.settings import FILE

REPOSITORY = Path(__file__).parents[3]
RULES = shipped_rules()


def defaults() -> dict[str, Any]:
    """The shipped defaults by section.key, as text."""
    faults: list[str] = []
    found = {entry.name: entry.value for entry in entries(REPOSITORY / FILE, faults)}
    assert faults == []
    return found


# ---- the two files ----


def test_every_default_has_a_rule_and_every_rule_a_default() -> None:
    assert list(RULES) == list(defaults())


@pytest.mark.parametrize("name", RULES)
def test_the_default_obeys_its_rule(name: str) -> None:
    value = RULES[name].fit(defaults()[name])
    section, _, key = name.partition(".")
    assert value == yaml.safe_load((REPOSITORY / FILE).read_text())[section][key]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_what_the_setting_is_and_bounds_every_number(name: str) -> None:
    rule = RULES[name]
    assert rule.about
    if rule.kind in ("number", "whole number") and not rule.choices:
        assert (rule.least is None) != (rule.above is None)
        assert (rule.most is None) != (rule.below is None)


def test_any_reader_of_yaml_finds_the_same_words_in_the_schema() -> None:
    """Of `no` without quotes a reader of YAML 1.1 makes false."""
    for section, keys in yaml.safe_load(
        (REPOSITORY / TRAINING_SCHEMA).read_text()
    ).items():
        for key, parts in keys.items():
            choices = tuple(parts.get("choices", ()))
            assert choices == RULES[f"{section}.{key}"].choices


# ---- what else knows of the settings ----


def test_the_memory_of_every_choice_is_known() -> None:
    assert set(RULES["optimizer.type"].choices) == set(MOMENT_BYTES)
    assert set(RULES["quantization.bits"].choices) == set(QUANTISED_BYTES)
    assert set(RULES["model.dtype"].choices) <= set(DTYPE_BYTES)


def test_the_script_has_a_name_of_the_trainers_for_every_optimizer() -> None:
    source = (REPOSITORY / "scripts/training/arguments.py").read_text()
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPTIMIZERS"
    )
    assert set(names) == set(RULES["optimizer.type"].choices)


def test_the_check_of_the_scripts_is_this_one() -> None:
    link = REPOSITORY / "scripts/training/rules.py"
    assert link.resolve() == REPOSITORY / "ugro_tasks/cluster/rules.py"


@pytest.mark.parametrize(
    ("form", "key", "setting"),
    [
        (TrainingSection, "default_epochs", "training.num_epochs"),
        (TrainingSection, "default_learning_rate", "training.learning_rate"),
        (TrainingSection, "max_seq_length", "model.max_seq_length"),
        (LoraSection, "rank", "lora.rank"),
        (LoraSection, "dropout", "lora.dropout"),
    ],
)
def test_an_editor_is_told_the_limits_of_the_schema(
    form: Any, key: str, setting: str
) -> None:
    told, rule = form.model_json_schema()["properties"][key], RULES[setting]
    assert told["type"] == {"whole number": "integer", "number": "number"}[rule.kind]
    assert (told.get("minimum"), told.get("exclusiveMinimum")) == (
        rule.least,
        rule.above,
    )
    assert (told.get("maximum"), told.get("exclusiveMaximum")) == (
        rule.most,
        rule.below,
    )
    assert told["default"] is None


# ---- a rule ----


@pytest.mark.parametrize(
    ("rule", "value", "fitted"),
    [
        (Rule("text"), "no", "no"),
        (Rule("text"), Quoted("null"), "null"),
        (Rule("text", optional=True), "null", None),
        (Rule("text", optional=True), "", None),
        (Rule("text", optional=True), "~", None),
        (Rule("text", optional=True), None, None),
        (Rule("text", choices=("INFO", "no")), "info", "INFO"),
        (Rule("text", choices=("INFO", "no")), "No", "no"),
        (Rule("yes or no"), "on", True),
        (Rule("yes or no"), "No", False),
        (Rule("yes or no"), True, True),
        (Rule("whole number"), "007", 7),
        (Rule("whole number"), "1_000", 1000),
        (Rule("whole number"), 7, 7),
        (Rule("whole number", choices=(4, 8)), "8", 8),
        (Rule("number"), "1e-8", 1e-8),
        (Rule("number"), "1", 1.0),
        (Rule("number"), 1, 1.0),
        (Rule("number", least=0, items=2), ["0", "1e-1"], [0.0, 0.1]),
        (Rule("name", items=0), ["a"], ["a"]),
        (Rule("whole number", also=("auto",)), "auto", "auto"),
        (Rule("whole number", by_node=True), {"a": "1", "b": 2}, {"a": 1, "b": 2}),
        (Rule("any"), "1.5", 1.5),
    ],
)
def test_a_value_becomes_what_its_rule_says(
    rule: Rule, value: Any, fitted: Any
) -> None:
    found = rule.fit(value)
    assert (found, type(found)) == (fitted, type(fitted))


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Rule("text"), ""),
        (Rule("text"), None),
        (Rule("text"), 5),
        (Rule("text"), ["a"]),
        (Rule("name"), "-a"),
        (Rule("yes or no"), "1"),
        (Rule("yes or no"), 1),
        (Rule("yes or no"), None),
        (Rule("whole number"), "1.0"),
        (Rule("whole number"), 1.0),
        (Rule("whole number"), True),
        (Rule("whole number"), "9" * 5000),
        (Rule("whole number", least=1), "0"),
        (Rule("whole number", most=1), "2"),
        (Rule("whole number", choices=(4, 8)), "5"),
        (Rule("whole number", by_node=True), {"a": "x"}),
        (Rule("whole number"), {"a": "1"}),
        (Rule("number"), "nan"),
        (Rule("number"), "-inf"),
        (Rule("number"), True),
        (Rule("number", above=0), "0"),
        (Rule("number", below=1), "1"),
        (Rule("number", items=2), ["1"]),
        (Rule("number", items=2), "1"),
        (Rule("name", items=0), []),
        (Rule("any"), {"a": "1"}),
        (Rule("any"), ["a"]),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(rule: Rule, value: Any) -> None:
    with pytest.raises(Misfit, match="must be"):
        rule.fit(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("on", True),
        ("NO", False),
        ("010", 10),
        ("-1", -1),
        ("1.5", 1.5),
        ("1e-8", 1e-8),
        ("1:30", "1:30"),
        ("2026-01-20", "2026-01-20"),
        ("nan", "nan"),
        ("word", "word"),
        (Quoted("1"), "1"),
        (Quoted("no"), "no"),
        (["1", Quoted("1")], [1, "1"]),
        (2.5, 2.5),
    ],
)
def test_what_has_no_rule_is_what_it_looks_like(text: Any, value: Any) -> None:
    found = meant(text)
    assert (found, type(found)) == (value, type(value))
