"""The tools that the demo offers to a model: small functions of this process, with their JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from qwen_edge.types import ToolCall

# A table in place of a weather service: the demo needs no network.
_WEATHER = {
    "vienna": {"temp_c": 17, "sky": "sunny"},
    "madrid": {"temp_c": 31, "sky": "sunny"},
    "oslo": {"temp_c": 4, "sky": "rainy"},
}


def get_weather(city: str) -> dict[str, Any]:
    """Return temperature and sky of a city, from the table above."""
    return _WEATHER.get(city.lower(), {"error": f"no weather for {city}"})


def add(a: int, b: int) -> dict[str, Any]:
    """Return the sum of two integers."""
    return {"sum": a + b}


def _schema(name: str, description: str, **properties: str) -> dict[str, Any]:
    """Return a tool in OpenAI's form; all its properties are required."""
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER_TOOL = _schema("get_weather", "Current weather of a city.", city="string")
ADD_TOOL = _schema("add", "Add two integers.", a="integer", b="integer")

_FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {"get_weather": get_weather, "add": add}


def run_call(call: ToolCall) -> str:
    """Run the function that a model asks for; return its result as JSON.

    Models get names and arguments wrong: that is a result too, which the model reads.
    """
    function = _FUNCTIONS.get(call.name)
    if function is None:
        return json.dumps({"error": f"no tool {call.name}"})
    try:
        return json.dumps(function(**call.arguments))
    except (TypeError, AttributeError) as error:
        return json.dumps({"error": str(error)})
