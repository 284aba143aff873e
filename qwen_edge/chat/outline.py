"""A JSON schema as a small model reads it best: the form of the answer, not the schema in full.

::

    {"type": "object", "properties": {"age": {"type": "integer"}, "mood": {"enum": ["good", "bad"]}}, …}
    {"age": integer, "mood": "good" or "bad"}

Shown the schema itself, Qwen2.5-Coder-0.5B answers with it: its values stand under "properties", behind a "type".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SHOWN = {"type", "enum", "const", "properties", "required", "items", "prefixItems", "anyOf", "oneOf", "$ref"}
_NOTES = (
    "format", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems",
)  # fmt: skip
_NEEDLESS = {"title", "default", "examples", "$schema", "$id", "$defs", "definitions", "description"}


def outline(schema: Mapping[str, Any]) -> str | None:
    """Return the form of the values that fit a schema.

    Args:
        schema: A JSON schema. A $ref is followed inside of it.

    Returns:
        None when it contains itself, or says more than a form can show (allOf, patternProperties).
    """
    try:
        return _form(schema, schema, ())
    except _NotShownError:
        return None


class _NotShownError(Exception):
    pass


def _form(schema: Any, root: Mapping[str, Any], path: tuple[str, ...]) -> str:
    if schema is True or schema == {}:
        return "any value"
    known = {*_SHOWN, *_NOTES, *_NEEDLESS, "additionalProperties"}
    if not isinstance(schema, Mapping) or not schema.keys() <= known:
        raise _NotShownError
    if "$ref" in schema:
        form = _referred(schema["$ref"], root, path)
    elif "anyOf" in schema or "oneOf" in schema:
        form = " or ".join(_form(each, root, path) for each in schema.get("anyOf") or schema["oneOf"])
    elif "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        form = " or ".join(json.dumps(value, ensure_ascii=False) for value in values)
    elif "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        form = " or ".join(_form_of(kind, schema, root, path) for kind in kinds)
    else:
        raise _NotShownError
    notes = [str(schema["description"])] if schema.get("description") else []
    notes += [f"{key} {schema[key]}" for key in _NOTES if key in schema]
    return f"{form} ({'; '.join(notes)})" if notes else form


def _referred(reference: Any, root: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return the form of a schema that another one names: `#/$defs/Item`."""
    _, _, name = str(reference).rpartition("/")
    definitions = root.get("$defs") or root.get("definitions") or {}
    if name in path or name not in definitions:
        raise _NotShownError
    return _form(definitions[name], root, (*path, name))


def _form_of(kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], path: tuple[str, ...]) -> str:
    if kind == "array":
        members = [_form(each, root, path) for each in schema.get("prefixItems", ())]
        if schema.get("items", True) is not False and not (members and "items" not in schema):
            members.append(f"{_form(schema.get('items', True), root, path)}, ...")
        return f"[{', '.join(members)}]"
    if kind != "object":
        return kind
    members = []
    for name, member in schema.get("properties", {}).items():
        form = _form(member, root, path)
        if name not in schema.get("required", ()):
            form += " (may be left out)"
        members.append(f"{json.dumps(name, ensure_ascii=False)}: {form}")
    others = schema.get("additionalProperties", True)
    if isinstance(others, Mapping):
        members.append(f"any name: {_form(others, root, path)}")
    return f"{{{', '.join(members)}}}" if members else kind
