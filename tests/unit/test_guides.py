"""The guides for phones and boards: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_edge.catalog import parse_model_name
from qwen_edge.cli.main import VERBS

ROOT = Path(__file__).parents[2]
GUIDES = ("android.md", "arm.md", "bundle.md", "embedding.md", "raspberry-pi.md", "small-memory.md")


@pytest.mark.parametrize("name", GUIDES)
def test_links_and_files_are_there(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert [link for link in sorted(links) if not (ROOT / "docs" / link).exists()] == []
    named = set(re.findall(r"(?<![\w/.])(?:examples|tests)/(?!llama)[\w./-]+\w", text))
    assert [path for path in sorted(named) if "/packages/" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", GUIDES)
def test_commands_and_models_exist(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    verbs = set(re.findall(r"(?<![-\w])qwen-edge ([a-z][a-z-]+)", "\n".join([*blocks, *spans])))
    assert verbs
    assert verbs - set(VERBS) == set()
    for model in set(re.findall(r"\bqwen[\d.]+-[\d.]+b(?:@\w+)?", text)):
        assert parse_model_name(model).model is not None
