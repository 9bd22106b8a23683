"""The forms of the cluster file: the JSON schema that editors read, and the records that forms become."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from ugro_tasks.cluster import model
from ugro_tasks.cluster.fields import Section
from ugro_tasks.cluster.schema import (
    LoggingSection,
    TimeoutsSection,
    schema,
)

REPOSITORY = Path(__file__).parents[3]
PAIRS = [
    (TimeoutsSection, model.Timeouts),
    (LoggingSection, model.Logging),
]
# What only the form has.
ONLY_FORM = {"file"}
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


# Form and record


def defaults_of(record: type[model.Record]) -> dict[str, Any]:
    """The fields of a record, each with its default."""
    return {field.name: field.default for field in msgspec.structs.fields(record)}


@pytest.mark.parametrize(("form", "record"), PAIRS)
def test_form_and_record_have_the_same_fields_and_defaults(
    form: type[Section], record: type[model.Record]
) -> None:
    written = form().model_dump(exclude=ONLY_FORM)
    kept = defaults_of(record)
    assert list(written) == list(kept)
    assert written == kept


def limits_of(properties: dict[str, Any]) -> dict[str, set[tuple[str, Any]]]:
    """The limits of each value of a JSON schema, those of its kinds together."""

    def within(part: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(part, list):
            for item in part:
                yield from within(item)
        elif isinstance(part, dict):
            yield from ((key, part[key]) for key in LIMITS if key in part)
            choices = part.get("enum", [part["const"]] if "const" in part else [])
            yield from (("choice", choice) for choice in choices)
            for key in ("anyOf", "items", "additionalProperties"):
                yield from within(part.get(key))

    return {key: set(within(part)) for key, part in properties.items()}


@pytest.mark.parametrize(("form", "record"), PAIRS)
def test_form_and_record_have_the_same_limits(
    form: type[Section], record: type[model.Record]
) -> None:
    written = limits_of(form.model_json_schema(by_alias=False)["properties"])
    (_, definitions) = msgspec.json.schema_components([record])
    kept = limits_of(definitions[record.__name__]["properties"])
    assert {
        key: limits for key, limits in written.items() if key not in ONLY_FORM
    } == kept


# Schema


def misfits(value: Any, part: dict[str, Any], at: str = "") -> Iterator[str]:
    """Where `value` breaks the part of the schema that is about it."""
    if "$ref" in part:
        yield from misfits(value, schema()["$defs"][part["$ref"].split("/")[-1]], at)
        return
    if "anyOf" in part:
        found = [list(misfits(value, option, at)) for option in part["anyOf"]]
        yield from min(found, key=len)
        return
    kind = {
        dict: "object",
        list: "array",
        str: "string",
        int: "integer",
        float: "number",
    }
    fits = {kind.get(type(value), "null")} | (
        {"number"} if isinstance(value, int) else set()
    )
    if part["type"] not in fits:
        yield f"{at}: {part['type']}"
    elif isinstance(value, dict):
        known, required = part["properties"].keys(), set(part.get("required", []))
        yield from (
            f"{at}: {key}" for key in (value.keys() - known) | (required - value.keys())
        )
        for key in value.keys() & known:
            yield from misfits(value[key], part["properties"][key], f"{at}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from misfits(item, part["items"], f"{at}/{index}")
    elif value not in part.get("enum", [value]) or (
        isinstance(value, (int, float))
        and not part.get("minimum", value) <= value <= part.get("maximum", value)
    ):
        yield f"{at}: {value}"


def test_the_schema_file_is_what_the_models_say() -> None:
    written = json.loads((REPOSITORY / "cluster.schema.json").read_text())
    assert written == schema(), (
        "run: python -m ugro_tasks.cluster.schema > cluster.schema.json"
    )


def test_the_repository_cluster_fits_its_schema() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=cluster.schema.json\n")
    assert list(misfits(yaml.safe_load(text), schema())) == []


def test_the_schema_finds_what_an_editor_should_underline() -> None:
    wrong = {
        "cluster": {"master": {"ip": 1, "prot": 22}},
        "workers": [{"name": "a", "ip": "::1"}],
    }
    assert sorted(misfits(wrong, schema())) == [
        "/cluster/master/ip: string",
        "/cluster/master: prot",
    ]


def test_every_section_of_the_schema_is_explained() -> None:
    unexplained = [
        name for name, model in schema()["$defs"].items() if not model["description"]
    ]
    assert unexplained == []
    assert "Default: `pixi`" in json.dumps(schema())
