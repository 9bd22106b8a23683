"""The errors of pydantic in words of the cluster file.

    form = validate(document, ClusterFile)   # None on any fault; all are in document.faults

The words need no knowledge of pydantic.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .values import shown
from .yaml_lines import Document, Loc

Form = TypeVar("Form", bound=BaseModel)

LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def validate(document: Document, model: type[Form]) -> Form | None:
    """Return the document's data as a `model`; None on any fault, listed in `document.faults`."""
    try:
        form = model.model_validate(document.data)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            # pydantic marks the fault of a mapping's key by "[key]".
            loc = tuple(part for part in error["loc"] if part != "[key]")
            document.fault(loc, _sentence(error, model))
        return None
    return None if document.faults else form


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Put an error of pydantic into words."""
    value = error["input"]
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "is missing; it has to be given"
        case "extra_forbidden":
            return _unknown_key(error["loc"], model)
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"{_described(value)} is not a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{_described(value)} is not a number"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{str(value)[:60]} cannot be; it must be {_limit(context)}"
        case "string_type":
            return f"must be one value, not {_described(value)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            section = "a section of `key: value` lines"
            return f"must be {section}, not {_described(value)}"
        case "list_type" | "tuple_type":
            marked = "a list, each line of it begun with '-'"
            return f"must be {marked}, not {_described(value)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            hint = _suggestion(str(value), choices)
            return f"{_described(value)} is not one of: {', '.join(choices)}{hint}"
    return error["msg"]


def _limit(context: Mapping[str, Any]) -> str:
    """Return the limit broken by a number, as in "at least 1"."""
    for key, words in LIMITS.items():
        if key in context:
            return f"{words} {context[key]:g}"
    raise LookupError(f"no limit in {context}")


def _described(value: object) -> str:
    """Describe a value in a message: a section, a list, or the value itself."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    return shown(value)


def _suggestion(word: str, words: list[str]) -> str:
    """Return "; did you mean X?" for the nearest word; empty if none is near."""
    near = get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_key(loc: Loc, model: type[BaseModel]) -> str:
    """Say that a key is unknown, and suggest a key of a section in here, or a similar one."""
    key = str(loc[-1])
    keys = _keys(_model_at(loc[:-1], model))
    for name, field in keys.items():
        section = _model_in(field.annotation)
        if section and key in _keys(section):
            return f"unknown key; did you mean {name}.{key}?"
    hint = _suggestion(key, list(keys))
    if not hint:
        hint = f"; known here are: {', '.join(keys)}"
    return f"unknown key{hint}"


def _model_at(loc: Loc, model: type[BaseModel]) -> type[BaseModel]:
    """Return the model of the section at `loc` inside a `model`."""
    parts = iter(loc)
    for part in parts:
        field = _keys(model)[str(part)]
        model = _model_in(field.annotation) or model
        if get_origin(field.annotation) in (list, dict):
            # Skip the place in the list, or the name in the mapping.
            next(parts, None)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class in a field's type: itself, or inside a list, mapping or choice."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _model_in(part)
        if found:
            return found
    return None


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return {key in the file: field} of a section."""
    return {
        str(field.validation_alias or name): field
        for name, field in model.model_fields.items()
    }
