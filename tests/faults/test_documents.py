"""docs/errors.md and docs/faults.md say what the classes and the faults say; every error raised is one of ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_edge import errors
from qwen_edge.errors import QwenEdgeError
from tests.faults.documents import DOCUMENTS, classes, tree_text
from tests.faults.running import ROOT

FOLDERS = ("qwen_edge", "convert", "quantize", "bench")
# Built-in errors that never reach a user: what raises them catches them, or Python's own conventions ask for them.
CAUGHT = {
    "convert/gguf_writer.py": "of a model card; _read_metadata makes a CheckpointError of it",
    "convert/json_files.py": "of a key that stands twice; read_object makes a CheckpointError of it",
    "qwen_edge/__main__.py": "of stdout, with its name; end_with makes a line of it",
    "qwen_edge/bundle/json_form.py": "of damaged JSON; read_bundle makes a FormatError of it",
    "qwen_edge/bundle/record.py": "of a damaged bundle.json; read_bundle makes a FormatError of it",
    "qwen_edge/bundle/sections.py": "of a damaged tensors.json; read_sections makes a FormatError of it",
    "qwen_edge/byte_sizes.py": "of a size that is none; the command line makes wrong usage of it",
    "qwen_edge/chat/partial_json.py": "of text that is no JSON; parse_partial answers with what it has",
    "qwen_edge/chat/template.py": "of a hostile form of a date; render makes a TemplateError of it",
    "qwen_edge/device/bandwidth.py": "of damaged figures; remembered() measures again",
    "qwen_edge/engines/onnx_file.py": "of a damaged field; read_onnx_file makes a FormatError of it",
    "qwen_edge/engines/onnx_folder.py": "of damaged metadata; _checked_facts makes a FormatError of it",
    "qwen_edge/manifest.py": "of a damaged manifest; read_manifest makes a FormatError of it",
    "qwen_edge/native/cpu_modules.py": "of kernels that do not load; library.api makes a NativeMissingError of it",
    "qwen_edge/reply_options.py": "TypeError for an unknown keyword, as Python raises it",
    "qwen_edge/session_file.py": "of a damaged session; read_session makes a FormatError of it",
    "qwen_edge/state_file.py": "of a damaged file; read_state_file makes a FormatError of it",
}
BUILT_IN = frozenset({"Exception", "RuntimeError", "ValueError", "TypeError", "KeyError", "IndexError", "OSError", "IOError",
                      "FileNotFoundError", "PermissionError", "MemoryError", "ArithmeticError", "LookupError"})  # fmt: skip


@pytest.mark.parametrize(("path", "make"), DOCUMENTS.items(), ids=lambda value: getattr(value, "name", ""))
def test_documents_are_as_generated(path: Path, make: Callable[[], str]) -> None:
    assert path.read_text(encoding="utf-8") == make(), "python -m tests.faults --write"


def test_tree_that_is_drawn_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = [line[4:] for line in errors.__doc__.splitlines() if re.match(r"    \S*(Qwen|[│├└])", line)]
    assert [re.match(r"\W*\w+", line)[0] for line in drawn] == tree_text().splitlines()  # type: ignore[index]
    assert all(len(line.split()) > 2 for line in drawn[1:]), "each says what it is"


def test_every_error_of_the_module_is_in_the_tree() -> None:
    named = [value for value in vars(errors).values() if isinstance(value, type)]
    ours = {value for value in named if value.__module__ == errors.__name__}
    assert ours == set(classes())


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_class_has_its_own_cause_and_cure(cls: type[QwenEdgeError]) -> None:
    for part in ("cause", "cure"):
        text = vars(cls).get(part)
        assert text, f"{cls.__name__} has no {part} of its own"
        assert text.endswith((".", "goes on.", '"'))


def raised_names(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what a file raises by its name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name):
                yield node.lineno, raised.id


def test_users_meet_our_errors_only() -> None:
    found = [
        (file.relative_to(ROOT).as_posix(), line, name)
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not (folder == "qwen_edge" and file.relative_to(ROOT / folder).parts[0] in FOLDERS)
        for line, name in raised_names(file)
        if name in BUILT_IN
    ]
    bare = [f"{file}:{line}: {name}" for file, line, name in found if file not in CAUGHT]
    assert not bare, "raise one of qwen_edge/errors.py, or say in CAUGHT who catches it"
    assert set(CAUGHT) == {file for file, _, _ in found}, "no longer raised there"


def test_assertions_are_for_bugs() -> None:
    bare = []
    for folder in ("qwen_edge", "convert", "quantize"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Assert) and not (
                    node.msg is not None and ast.unparse(node.msg).lstrip("f").startswith(("'Bug:", '"Bug:'))
                ):
                    bare.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not bare, 'an assertion says "Bug: …": what a user does wrong is an error of ours'
