"""Tokens of an exported folder: its own tokenizer.json, run by the package `tokenizers`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path

from qwen_edge.errors import FormatError, MissingExtraError

# What llama.cpp ends a reply at whatever a file says, so that both engines end it at the same place.
# Source: special_eog_ids in llama.cpp's src/llama-vocab.cpp, as far as Qwen has them.
_ALWAYS_ENDS = ("<|im_end|>", "<|endoftext|>")


class OnnxTokenizer:
    """Text to tokens and back. Callable from several threads."""

    def __init__(self, path: Path, end_tokens: Sequence[int | str]) -> None:
        """Read a tokenizer.

        Args:
            path: tokenizer.json.
            end_tokens: Ids and texts of tokens that end a reply.

        Raises:
            MissingExtraError: The package is not installed.
            FormatError: The file is damaged.
        """
        try:
            from tokenizers import AddedToken, Tokenizer
        except ImportError as error:
            raise MissingExtraError("tokenizers", "onnx", "running an ONNX model") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package has no class of its own for it
            raise FormatError(f"{path} is no tokenizer: {error}", hint="Export the folder again.") from error
        # Control tokens of a checkpoint that does not mark them, as the converter to GGUF takes them too.
        self._added = {
            token: (each.content, each.special or _looks_like_control(each.content))
            for token, each in self._tokenizer.get_added_tokens_decoder().items()
        }
        controls = [text for text, is_control in self._added.values() if is_control]
        self._tokenizer.add_special_tokens(
            [AddedToken(text, special=True, normalized=False) for text in controls]
        )
        ids = [
            self._tokenizer.token_to_id(end) if isinstance(end, str) else end
            for end in (*end_tokens, *_ALWAYS_ENDS)
        ]
        self._ends = frozenset(token for token in ids if token is not None)
        self._lock = threading.Lock()  # a switch of the tokenizer says whether markers are read

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """See Engine.tokenize. Tags that are no control tokens, such as `<think>`, are read in any case."""
        clean = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text to the package
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            tokens: list[int] = self._tokenizer.encode(clean, add_special_tokens=False).ids
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """See Engine.token_bytes."""
        if token in self._added:
            text, is_control = self._added[token]
            return b"" if is_control else text.encode("utf-8")
        piece = self._tokenizer.id_to_token(token)
        return bytes(_BYTE_OF[character] for character in piece) if piece is not None else b""

    def is_end(self, token: int) -> bool:
        """See Engine.is_end."""
        return token in self._ends


def shared_tokenizer(path: Path, end_tokens: Sequence[int | str]) -> OnnxTokenizer:
    """Return the tokenizer of a file, the same one as before where the file has not changed.

    Reading one takes a third of a second, and the package keeps some memory of each.

    Raises:
        As OnnxTokenizer(); OSError: The file cannot be read.
    """
    facts = path.stat()
    return _tokenizer(path, tuple(end_tokens), (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _tokenizer(
    path: Path, end_tokens: tuple[int | str, ...], identity: tuple[int, int, int]
) -> OnnxTokenizer:
    return OnnxTokenizer(path, end_tokens)


def _looks_like_control(text: str) -> bool:
    return text.startswith("<|") and text.endswith("|>")


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of the byte-level alphabet.

    Printable characters of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on, in order.
    Source: bytes_to_unicode in GPT-2's encoder.py.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
