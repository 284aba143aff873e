"""Compares the tokenization of a GGUF file's vocabulary in llama.cpp with that of the `tokenizers` library.

    python -m tests.integration.convert.tokenization FILE.gguf tokenizer.json [--n 10000] [--vectors vocab.gguf]

`--vectors` also runs llama.cpp's own test vectors (vocab.gguf.inp, vocab.gguf.out).
"""

from __future__ import annotations

import argparse
import random
import sys
import unicodedata
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer

from qwen_edge.native import library

ROOT = Path(__file__).resolve().parents[3]
EVAL_TEXTS = sorted((ROOT / "examples" / "tiny-qwen3" / "eval").iterdir())

# First and last code point of scripts and symbols that text is drawn from.
SCRIPTS = [
    (0x20, 0x7E),
    (0xA0, 0x17F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x1E00, 0x1EFF),
    (0x2000, 0x206F),
    (0x2070, 0x209F),
    (0x2100, 0x218F),
    (0x2200, 0x22FF),
    (0x2460, 0x24FF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
]
SPACES = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\x0b",
    "\x0c",
    "\x85",
]
SNIPPETS = [
    "def f(x: int) -> str:\n    return f'{x:>10}'\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i] * 0x1F;\n}",
    "SELECT * FROM users WHERE id >= 42 AND name LIKE '%o''Brien%';",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
    "https://example.org/a/b?c=d&e=%20f#g",
    "I'm you'RE we'Ve they'LL it's DON'T he'd 'twas",
    "\\frac{1}{2} \\sum_{i=0}^{\\infty} x_i^2",
    "----====####****____....,,,,!!!!????",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪✅1️⃣",
]


def varied_texts(n: int, special: list[str], seed: int = 0) -> list[str]:
    """Return `n` strings of Unicode, code, whitespace, digits, prose and special tokens, in NFC, all seeded.

    llama.cpp has no Unicode normalization and the tokenizers library applies NFC: NFC text is what both define.
    """
    chance = random.Random(seed)
    prose = [path.read_text(encoding="utf-8") for path in EVAL_TEXTS]

    def characters() -> str:
        first, last = chance.choice(SCRIPTS)
        return "".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 12)))

    def excerpt() -> str:
        text = chance.choice(prose)
        start = chance.randrange(len(text))
        return text[start : start + chance.randint(1, 200)]

    def digits() -> str:
        return "".join(chance.choice("0123456789.,-+eE٣४３½²") for _ in range(chance.randint(1, 15)))

    def spaces() -> str:
        return "".join(chance.choice(SPACES) for _ in range(chance.randint(1, 5)))

    def code_point() -> str:
        value = chance.randrange(0x110000 - 0x800)
        return chr(value if value < 0xD800 else value + 0x800)

    makers = [
        characters,
        excerpt,
        digits,
        spaces,
        code_point,
        lambda: chance.choice(SNIPPETS),
        lambda: chance.choice(special),
        lambda: chance.choice(special)[:-1],
    ]
    texts = ["".join(chance.choice(makers)() for _ in range(chance.randint(1, 8))) for _ in range(n)]
    return [unicodedata.normalize("NFC", text) for text in texts]


class LlamaVocabulary:
    """The vocabulary of a GGUF file, loaded by llama.cpp without the weights."""

    def __init__(self, path: Path) -> None:
        self._api = library.api()
        parameters = self._api.llama_model_default_params()
        parameters.vocab_only = True
        self._model = self._api.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp does not load {path}"
        self._vocab = self._api.llama_model_get_vocab(self._model)

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_model_free(self._model)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens in it recognized, none added."""
        data = text.encode("utf-8")
        ids = (self._api.llama_token * (len(data) + 1))()
        n = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, True)
        assert n >= 0, f"llama_tokenize wants {-n} tokens for {len(data)} bytes"
        return list(ids[:n])

    def is_end(self, token_id: int) -> bool:
        """Tell whether generation ends at this token."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token_id))


def differences(vocabulary: LlamaVocabulary, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Return the texts that the two split into different tokens."""
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
        text
        for text, encoding in zip(texts, expected, strict=True)
        if vocabulary.encode(text) != encoding.ids
    ]


def vector_differences(vocabulary: LlamaVocabulary, vocab_gguf: Path) -> tuple[int, list[str]]:
    """Run llama.cpp's test vectors; return their number and the texts that came out otherwise."""
    # Both files end with their separator.
    inputs = Path(f"{vocab_gguf}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    outputs = Path(f"{vocab_gguf}.out").read_text(encoding="utf-8").split("\n")[:-1]
    pairs = [(text, [int(token) for token in ids.split()]) for text, ids in zip(inputs, outputs, strict=True)]
    return len(pairs), [text for text, ids in pairs if vocabulary.encode(text) != ids]


def main() -> int:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vectors", type=Path)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    with LlamaVocabulary(options.gguf) as vocabulary:
        wrong = differences(vocabulary, tokenizer, varied_texts(options.n, special, options.seed))
        print(f"{options.n} texts, {len(wrong)} differ")  # noqa: T201
        if options.vectors:
            n, wrong_vectors = vector_differences(vocabulary, options.vectors)
            print(f"{n} vectors, {len(wrong_vectors)} differ")  # noqa: T201
            wrong += wrong_vectors
    for text in wrong[:20]:
        print(repr(text))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
