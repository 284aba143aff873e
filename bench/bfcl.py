"""Questions of the Berkeley Function-Calling Leaderboard, read from the files of the bfcl-eval package.

::

    pip download --no-deps bfcl-eval && unzip bfcl_eval-*.whl "bfcl_eval/data/*"

Source: https://github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import ConfigError, FormatError

# BFCL writes Python's names of types; a value of type "any" may be anything.
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with the function on offer.

    Attributes:
        id: BFCL's, simple_python_0 say.
        text: What the user says.
        function: Name, description and parameters in BFCL's own types, which its rules of matching refer to.
        answers: Of the function's parameters, the values that are right; "" among them: it may be left out. None where
            no call is right.
    """

    id: str
    text: str
    function: dict[str, Any]
    answers: dict[str, list[Any]] | None

    @property
    def tool(self) -> dict[str, Any]:
        """The function as a tool whose parameters are a JSON schema."""
        return {**self.function, "parameters": as_json_schema(self.function["parameters"])}


def read_questions(folder: Path, category: str) -> list[Question]:
    """Read the questions of a category, and their answers where it has some.

    Args:
        folder: bfcl_eval/data of the package.
        category: simple_python, irrelevance.

    Raises:
        ConfigError: The folder has no such file.
        FormatError: A question has no text or function, or no answer though others have.
    """
    path = _find(folder, category)
    answers_path = folder / "possible_answer" / path.name
    answers = None
    if answers_path.exists():
        answers = {line["id"]: line["ground_truth"] for line in _read_lines(answers_path)}
    questions = []
    for line in _read_lines(path):
        try:
            function, text = line["function"][0], line["question"][0][-1]["content"]
            known = None if answers is None else answers[line["id"]][0][function["name"]]
            questions.append(Question(id=line["id"], text=text, function=function, answers=known))
        except (KeyError, IndexError, TypeError) as error:
            raise FormatError(f"{path} holds what is no question of {category}: {str(line)[:120]}") from error
    return questions


def as_json_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return BFCL's description of a value as a JSON schema: other names of types, the same keywords otherwise."""
    schema = dict(parameters)
    kind = schema.get("type")
    if kind == "any":
        del schema["type"]
    elif kind is not None:
        schema["type"] = _TYPES.get(kind, kind)
    if "properties" in schema:
        schema["properties"] = {name: as_json_schema(member) for name, member in schema["properties"].items()}
    if isinstance(schema.get("items"), Mapping):
        schema["items"] = as_json_schema(schema["items"])
    return schema


def _find(folder: Path, category: str) -> Path:
    found = sorted(folder.glob(f"BFCL_v*_{category}.json"))
    found = [path for path in found if path.stem.split("_", 2)[2] == category]
    if not found:
        raise ConfigError(
            f"{folder} has no questions of {category} (BFCL_v4_{category}.json)",
            hint="They are in bfcl_eval/data of the bfcl-eval package: pip download --no-deps bfcl-eval, then unzip.",
        )
    return found[-1]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise FormatError(f"{path} is not JSON lines: {error}") from error
