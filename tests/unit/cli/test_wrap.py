from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qwen_edge.cli.wrap import WordWrap, without_controls, wrapped


def fed(text: str, columns: int | None, *, pieces: int = 3, indent: str = "") -> str:
    wrap = WordWrap(columns, indent=indent)
    parts = [wrap.feed(text[i : i + pieces]) for i in range(0, len(text), pieces)]
    return "".join(parts) + wrap.flush()


@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_lines_break_between_words(pieces: int) -> None:
    assert fed("the quick brown fox jumps", 12, pieces=pieces) == "the quick\nbrown fox\njumps"


def test_what_fits_stays_as_it_is() -> None:
    text = "one\n\n  two   three\n- four\n"
    assert fed(text, 40) == text.rstrip(" ")


def test_a_word_longer_than_the_line_is_left_to_the_terminal() -> None:
    assert fed("see " + "x" * 30 + " end", 10) == "see\n" + "x" * 30 + " end"


def test_chinese_breaks_anywhere_but_before_a_full_stop() -> None:
    assert fed("北京是中国的首都。", 13).splitlines() == ["北京是中国的", "首都。"]
    assert fed("北京是中国。", 11).splitlines() == ["北京是中", "国。"]


def test_an_emoji_of_several_characters_is_not_torn() -> None:
    family = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
    assert family in fed("word " * 3 + family, 16)


def test_code_stays_as_it_is() -> None:
    code = "```python\nprint('a long line of code here')\n```\n"
    assert fed(code + "some words behind it", 14) == code + "some words\nbehind it"


def test_further_lines_are_indented() -> None:
    assert fed("one two three\nfour", 8, indent="  ") == "one two\n  three\n  four"
    assert fed("one\ntwo three", None, indent="  ") == "one\n  two three"


@given(st.text(alphabet="ab 北，\n", max_size=60), st.integers(4, 20), st.integers(1, 5))
def test_nothing_but_blanks_and_breaks_changes(text: str, columns: int, pieces: int) -> None:
    out = fed(text, columns, pieces=pieces)
    assert re.sub(r"\s", "", out) == re.sub(r"\s", "", text)
    for line in out.splitlines():
        has_long_word = any(cell_len(word) >= columns for word in re.findall(r"[ab，]+|北，*", line))
        assert cell_len(line.rstrip()) < columns or has_long_word or line.startswith(" ")


@given(st.text())
def test_nothing_moves_the_cursor(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", without_controls(text))
    assert without_controls("a\tb\nc") == "a\tb\nc"


def test_lines_of_a_text_are_broken_one_by_one() -> None:
    assert wrapped("name   what this\nother", 13, indent=" " * 7) == "name   what\n       this\nother"
    assert wrapped("name what it does", None) == "name what it does"
