"""Two models' predictions of the same tokens, compared row by row: what evaluation and verification count with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import NativeError

# Rows of logits compared at a time: 4 x 151,936 float64 are 5 MB for each temporary array; more is slower.
_SLICE_ROWS = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models' predictions of the same tokens, one value for each prediction.

    Attributes:
        kld: float64 [n], nats.
        same_top: bool [n], whether the most likely token is the same.
        log_p_reference: float64 [n], of the token that follows in the text.
        log_p_candidate: float64 [n], likewise.
    """

    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    log_p_reference: NDArray[np.float64]
    log_p_candidate: NDArray[np.float64]


def compare_logits(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.int64]
) -> Comparison:
    """Compare two models' logits row by row.

    Args:
        reference: float32 [n, n_vocab].
        candidate: float32 [n, n_vocab].
        targets: int64 [n], the token that follows each row in the text.
    """
    slices = [
        _compare_slice(reference[rows], candidate[rows], targets[rows])
        for rows in _row_slices(len(targets), _SLICE_ROWS)
    ]
    return Comparison(
        kld=np.concatenate([part.kld for part in slices]),
        same_top=np.concatenate([part.same_top for part in slices]),
        log_p_reference=np.concatenate([part.log_p_reference for part in slices]),
        log_p_candidate=np.concatenate([part.log_p_candidate for part in slices]),
    )


def _compare_slice(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.int64]
) -> Comparison:
    log_p = _log_softmax(reference)
    log_q = _log_softmax(candidate)
    rows = np.arange(len(targets))
    log_p_targets, log_q_targets = log_p[rows, targets], log_q[rows, targets]
    log_q -= log_p
    # A token that the reference rules out (-inf) adds nothing, whatever the candidate says.
    log_q[np.isneginf(log_p)] = 0.0
    np.exp(log_p, out=log_p)
    return Comparison(
        # Rounding can leave a sum of -1e-17 where both agree.
        kld=np.maximum(-np.einsum("ij,ij->i", log_p, log_q), 0.0),
        same_top=reference.argmax(axis=1) == candidate.argmax(axis=1),
        log_p_reference=log_p_targets,
        log_p_candidate=log_q_targets,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities, float64 of the same shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _row_slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, start + step)


def check_are_numbers(logits: NDArray[np.float32], path: object) -> None:
    """Check that a model computed numbers: one scale in its file that is none makes all of these none.

    Args:
        logits: float32 [n_vocab].
        path: The model, for the message.

    Raises:
        NativeError: They are not.
    """
    if np.isnan(logits).any():
        raise NativeError(
            f"{path} computes values that are no numbers (NaN)",
            hint="Its weights are damaged, or were so before they were quantized: fetch or convert it again. If a fresh "
            "file does the same, load it with safe_kernels=True: then the native library's fast kernels are at fault.",
        )
