from __future__ import annotations

from pathlib import Path

import click
import pytest

from qwen_edge.cli.options import parse_chat_template
from qwen_edge.config import LoadConfig


def test_chatml_or_a_file(tmp_path: Path) -> None:
    assert parse_chat_template("chatml") == "chatml"
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }} ä", encoding="utf-8")
    assert parse_chat_template(str(file)) == "{{ messages[0].content }} ä"
    assert LoadConfig().chat_template is None


def test_what_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("none.jinja", "binary", "."):
        with pytest.raises(click.BadParameter, match="neither chatml nor a file"):
            parse_chat_template(str(tmp_path / name))
