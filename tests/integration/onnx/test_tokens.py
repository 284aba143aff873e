"""Both engines read and write text alike: the same tokens, bytes and ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_edge import Model, load

Both = tuple[Model, Model]


@pytest.fixture(scope="module")
def both(tiny_onnx: Path, tiny_bf16: Path) -> Iterator[Both]:
    with load(tiny_onnx, n_threads=1) as here, load(tiny_bf16, n_threads=1, safe_kernels=False) as there:
        yield here, there


def test_every_token_has_the_same_bytes_and_ends_the_same(both: Both) -> None:
    here, there = both
    for token in range(here.info.n_vocab):
        assert here.engine.token_bytes(token) == there.engine.token_bytes(token), token
        assert here.engine.is_end(token) == there.engine.is_end(token), token


_MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
_texts = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(_MARKERS)), max_size=6).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=_texts, parse_special=st.booleans())
@example(text="Straßen u\u0308ber 12345  \r\n\t don't", parse_special=True)
@example(text="<|im_start|>user\n<think>", parse_special=False)
def test_texts_have_the_same_tokens(both: Both, text: str, parse_special: bool) -> None:
    here, there = (model.engine.tokenize(text, parse_special=parse_special) for model in both)
    assert here == there


def test_half_a_character_pair_is_no_reason_to_fail(both: Both) -> None:
    assert both[0].engine.tokenize("a\ud83dz") == both[0].engine.tokenize("a?z")
