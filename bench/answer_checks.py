"""Checks of answers by code. Each takes the text and returns "" when it passes, else what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from qwen_edge.bench.code_check import extract_code, failure_of

Check = Callable[[str], str]

# The commonest words that the other languages of this table do not share.
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "German": "der die das ein eine einen einer ist sind und oder nicht mit auf für von zu dem den des im es sich wird werden kann auch",
        "French": "le la les un une des du est sont et ou ne pas avec sur pour dans qui que il elle ce cette peut par aux au",
        "English": "the a an is are and or not with on for of to in it that this be can by from as which",
    }.items()
}
_MIN_WORDS = 5
_MIN_FUNCTION_WORD_SHARE = 0.2
_MIN_HAN_SHARE = 0.8
_MIN_HAN_CHARACTERS = 8


def in_language(language: str) -> Check:
    """Check that a text is in German or French: by function words, and by being in Latin script throughout."""

    def check(text: str) -> str:
        if _han_count(text):
            return "Chinese characters in the text"
        words = re.findall(r"[^\W\d_]+", text.lower())
        if len(words) < _MIN_WORDS:
            return f"{len(words)} words are too few to tell the language"
        shares = {
            name: sum(word in known for word in words) / len(words) for name, known in _FUNCTION_WORDS.items()
        }
        best = max(shares, key=lambda name: shares[name])
        if best != language or shares[language] < _MIN_FUNCTION_WORD_SHARE:
            listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            return f"not {language}: function words {listed}"
        return ""

    return check


def in_chinese(text: str) -> str:
    """Check that a text is Chinese, by the share of its letters that are Han characters."""
    han = _han_count(text)
    letters = sum(character.isalpha() for character in text)
    if han < _MIN_HAN_CHARACTERS or han < _MIN_HAN_SHARE * letters:
        return f"{han} of {letters} letters are Chinese"
    return ""


def only_number(expected: int) -> Check:
    """Check that a text holds one number, the expected one."""

    def check(text: str) -> str:
        numbers = re.findall(r"-?\d+(?:[.,]\d+)*", text)
        return "" if numbers == [str(expected)] else f"numbers {numbers}, expected {expected}"

    return check


def only_word(expected: str) -> Check:
    """Check that a text is one word; case and a full stop do not matter."""

    def check(text: str) -> str:
        return "" if text.strip().rstrip(".").lower() == expected.lower() else f"expected {expected}"

    return check


def json_object(expected: Mapping[str, Any]) -> Check:
    """Check that a text is a JSON object with the expected keys and values; a code fence round it is allowed."""

    def check(text: str) -> str:
        try:
            data = json.loads(extract_code(text))
        except (ValueError, RecursionError) as error:
            return f"no JSON: {error}"
        return "" if data == dict(expected) else f"expected {json.dumps(dict(expected))}"

    return check


def working_code(*assertions: str) -> Check:
    """Check that the first code block of a text runs and that the assertions hold."""

    def check(text: str) -> str:
        return failure_of(extract_code(text), assertions)

    return check


def mentions(*expected: str) -> Check:
    """Check that a text contains each of the expected pieces; case does not matter."""

    def check(text: str) -> str:
        missing = [piece for piece in expected if piece.lower() not in text.lower()]
        return f"does not mention {', '.join(missing)}" if missing else ""

    return check


def _han_count(text: str) -> int:
    # Source: Unicode blocks "CJK Unified Ideographs" and its Extension A.
    return sum("\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf" for character in text)
