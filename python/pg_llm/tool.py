"""What is a JSON Schema: the shape of its keywords (drafts 2020-12 and 7), as the metaschemas have it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from . import spi

#: Deeper than any schema that somebody wrote, and far from Python's own limit.
DEEPEST = 100

_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_ONE = {
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LIST = {"allOf", "anyOf", "oneOf", "prefixItems"}
_MAP = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
_NUMBER = {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"}
_COUNT = {"maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength", "minProperties"}
_FLAG = {"deprecated", "readOnly", "uniqueItems", "writeOnly"}
_TEXT = {"$anchor", "$comment", "$id", "$ref", "$schema", "contentEncoding", "contentMediaType", "description", "format", "pattern", "title"}
_ARRAY = {"enum", "examples"}

type Problem = tuple[str, str]


def check_schema(what: str, document: str) -> None:
    """Raise `spi.InvalidParameter` when a JSON text is no JSON Schema, with the place; `what` names it in the error."""
    schema = json.loads(document)
    for place, problem in _problems(schema, schema, "", 0):
        raise spi.InvalidParameter(
            f"{what} is no JSON Schema",
            detail=f"At {place or 'the top'}: {problem}.",
            hint="See https://json-schema.org/draft/2020-12, and correct it there.",
        )


def _problems(schema: Any, root: Any, place: str, depth: int) -> Iterator[Problem]:
    if depth > DEEPEST:
        raise spi.LimitExceeded(f"a JSON Schema of more than {DEEPEST} levels", hint="Give its inner parts names under $defs, and refer to them.")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield place, "a schema is an object, true or false"
        return
    for keyword, value in schema.items():
        here = f"{place}/{keyword.replace('~', '~0').replace('/', '~1')}"
        if problem := _problem(keyword, value, root):
            yield here, problem
            return
        for step, inner in _inner(keyword, value):
            yield from _problems(inner, root, here + step, depth + 1)


def _inner(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    if keyword in _ONE and not isinstance(value, list):
        yield "", value
    elif keyword in _LIST or keyword == "items":
        yield from ((f"/{number}", each) for number, each in enumerate(value))
    elif keyword in _MAP:
        yield from ((f"/{name.replace('~', '~0').replace('/', '~1')}", each) for name, each in value.items())


def _problem(keyword: str, value: Any, root: Any) -> str | None:
    match keyword:
        case "type":
            names = value if isinstance(value, list) else [value]
            unknown = [name for name in names if not isinstance(name, str) or name not in _TYPES]
            return f"{json.dumps(unknown[0])} is no type" if unknown else None if names else "no type is left"
        case "required":
            return None if _are_names(value) else "required is an array of names, each once"
        case "dependentRequired":
            return None if isinstance(value, dict) and all(map(_are_names, value.values())) else "dependentRequired is an object of arrays of names"
        case "patternProperties":
            return "patternProperties is an object" if not isinstance(value, dict) else next(filter(None, map(_bad_pattern, value)), None)
        case "$ref" if isinstance(value, str):
            return _bad_reference(value, root)
        case "pattern" if isinstance(value, str):
            return _bad_pattern(value)
    return _wrong_kind(keyword, value)


def _wrong_kind(keyword: str, value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    for keywords, is_right, kind in (
        (_LIST, isinstance(value, list) and value, "an array of at least one schema"),
        (_MAP, isinstance(value, dict), "an object of schemas"),
        (_NUMBER, is_number and (keyword != "multipleOf" or value > 0), "a number" + " above 0" * (keyword == "multipleOf")),
        (_COUNT, is_number and value >= 0 and value == int(value), "a whole number from 0"),
        (_FLAG, isinstance(value, bool), "true or false"),
        (_TEXT, isinstance(value, str), "a string"),
        (_ARRAY, isinstance(value, list), "an array"),
    ):
        if keyword in keywords and not is_right:
            return f"{keyword} is {kind}"
    return None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def _bad_pattern(pattern: str) -> str | None:
    # ECMA-262 has classes by Unicode property, which Python's re has not.
    try:
        re.compile(re.sub(r"\\[pP]\{\w+(=\w+)?\}", "x", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        return f"{json.dumps(pattern)} is no regular expression ({error})"
    return None


def _bad_reference(reference: str, root: Any) -> str | None:
    if not reference.startswith("#"):
        return f"{json.dumps(reference)} is outside of this schema"
    target = root
    if reference != "#":
        if not reference.startswith("#/"):
            return None if f'"$anchor": {json.dumps(reference[1:])}' in json.dumps(root) else f"{reference} leads nowhere"
        for step in reference[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                return f"{reference} leads nowhere"
    return None
