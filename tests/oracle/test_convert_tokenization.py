"""The full Qwen vocabulary in our GGUF file, against the tokenizers library and llama.cpp's own test vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qwen_edge.convert import convert_checkpoint
from tests import synthetic
from tests.integration.convert.tokenization import (
    LlamaVocabulary,
    differences,
    varied_texts,
    vector_differences,
)
from tests.oracle.convert_reference import SOURCE_VARIABLE

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(SOURCE_VARIABLE not in os.environ, reason=f"{SOURCE_VARIABLE} is not set"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = synthetic.qwen_tokenizer(_vocab_gguf())
    shape = replace(synthetic.TINY, vocab=synthetic.SHAPES["0.6b"].vocab)
    return synthetic.write_checkpoint(tmp_path_factory.mktemp("full") / "Full", shape, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> Iterator[LlamaVocabulary]:
    report = convert_checkpoint(checkpoint, checkpoint.parent / "full.gguf")
    with LlamaVocabulary(report.path) as loaded:
        yield loaded


def _vocab_gguf() -> Path:
    return Path(os.environ[SOURCE_VARIABLE]) / "models" / "ggml-vocab-qwen2.gguf"


def test_text_is_split_as_the_tokenizers_library_does(checkpoint: Path, vocabulary: LlamaVocabulary) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    assert len(special) == len(synthetic.QWEN3_ADDED_TOKENS)
    assert differences(vocabulary, tokenizer, varied_texts(10_000, special)) == []


def test_vectors_of_llama_cpp(vocabulary: LlamaVocabulary) -> None:
    n_vectors, wrong = vector_differences(vocabulary, _vocab_gguf())
    assert n_vectors == 46
    assert wrong == []
