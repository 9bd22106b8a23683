"""What a form finds wrong with a document, in words that need no knowledge of pydantic.

form = validate(document, ClusterFile)   # None if there is any fault; all are in document.faults
"""

import re
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .values import shown
from .yaml_lines import Document, Loc

Form = TypeVar("Form", bound=BaseModel)


def validate(document: Document, model: type[Form]) -> Form | None:
    """The document's data as a `model`; None, with the reasons in `document.faults`, if it is not one."""
    try:
        form = model.model_validate(document.data)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            loc = tuple(part for part in error["loc"] if part != "[key]")
            document.fault(loc, _sentence(error, model))
        return None
    return form if not document.faults else None


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "is missing; it has to be given"
        case "extra_forbidden":
            return _unknown_key(error["loc"], model)
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"{_said(value)} is not a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{_said(value)} is not a number"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            signs = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
            limits = [f"{sign} {context[key]:g}" for key, sign in signs.items() if key in context]
            return f"{str(value)[:60]} cannot be; it must be {limits[0]}"
        case "string_type":
            return f"must be one value, not {_said(value)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a section of `key: value` lines, not {_said(value)}"
        case "list_type" | "tuple_type":
            return f"must be a list, each line of it begun with '-', not {_said(value)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"{_said(value)} is not one of: {', '.join(choices)}{_near(str(value), choices)}"
    return error["msg"]


def _said(value: object) -> str:
    if isinstance(value, dict):
        return "a section"
    return "a list" if isinstance(value, list) else shown(value)


def _near(word: str, words: list[str]) -> str:
    near = get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_key(loc: Loc, model: type[BaseModel]) -> str:
    key, keys = str(loc[-1]), _keys(_model_at(loc[:-1], model))
    inner = [
        f"{name}.{key}"
        for name, field in keys.items()
        if (section := _model_in(field.annotation)) and key in _keys(section)
    ]
    if hint := (f"; did you mean {inner[0]}?" if inner else _near(key, list(keys))):
        return f"unknown key{hint}"
    return f"unknown key; known here are: {', '.join(keys)}"


def _model_at(loc: Loc, model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section at `loc` inside a `model`."""
    parts = iter(loc)
    for part in parts:
        field = _keys(model)[str(part)]
        model = _model_in(field.annotation) or model
        if get_origin(field.annotation) in (list, dict):
            next(parts, None)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {str(field.validation_alias or name): field for name, field in model.model_fields.items()}
