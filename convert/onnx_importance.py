"""What an error in each column of a matrix costs: the mean square of what the column is multiplied with, over a text.

Rounding that minimises the error of a product, rather than that of the weights, weighs each column by it.

Source: arXiv 2210.17323 (GPTQ) takes the same diagonal of X X^T; llama.cpp's imatrix is this mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.onnx_weights import Importance
from qwen_edge.convert.reference import Reference
from qwen_edge.errors import ConfigError, MissingExtraError

# Tokens of a window, each of which begins at position 0: longer ones cost more and say little else.
WINDOW_TOKENS = 512
# Enough for a mean to settle. 8,192 tokens of a 0.6B model take a minute or two.
MAX_TOKENS = 8192
_LEAST_TOKENS = 32


def tokenize(checkpoint: Checkpoint, text: str) -> list[int]:
    """Return a text's tokens, special ones read as plain text's.

    Raises:
        OSError: tokenizer.json cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "convert", "calibrating on a text") from error
    tokenizer = Tokenizer.from_str((checkpoint.folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return tokens


def measure_importance(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    *,
    window: int = WINDOW_TOKENS,
) -> Importance:
    """Run tokens through the reference forward pass, and average the squares of each matrix's inputs.

    Args:
        checkpoint: The model.
        tokens: Of the calibration text; the first MAX_TOKENS count.
        window: Tokens of a sequence.

    Returns:
        For each matrix, by its name without "model.": float32 [columns]. The head's stands under "lm_head.weight", or
        under "embed_tokens.weight" where it is tied.

    Raises:
        ConfigError: The text is too short, or a token is not in the vocabulary.
        CheckpointError, UnsupportedError, OSError: As `Reference`.
    """
    if len(tokens) < _LEAST_TOKENS:
        raise ConfigError(
            f"a calibration text of {len(tokens)} tokens says too little; {_LEAST_TOKENS} are the least",
            hint=f"Give a text like those the model will see; {MAX_TOKENS} tokens of it are used.",
        )
    model = Reference(checkpoint)
    used = list(tokens[:MAX_TOKENS])
    sums: dict[str, NDArray[np.float64]] = {}

    def observe(name: str, inputs: NDArray[np.float32]) -> None:
        sums[name] = sums.get(name, np.zeros(inputs.shape[1])) + np.square(inputs).sum(
            axis=0, dtype=np.float64
        )

    sequences = [used[start : start + window] for start in range(0, len(used), window)]
    states = model.hidden_states(sequences, observe)
    head = "embed_tokens.weight" if model.config.is_tied else "lm_head.weight"
    sums[head] = np.sum([np.square(state).sum(axis=0, dtype=np.float64) for state in states], axis=0)
    return {name: (total / len(used)).astype(np.float32) for name, total in sums.items()}
