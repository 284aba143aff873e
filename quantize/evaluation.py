"""How far a model file's predictions are from a reference file's: KL divergence, top token, perplexity.

The protocol is llama-perplexity's: the text's tokens are cut into windows of n_ctx, each window starts on an empty
cache, and the predictions of its second half are compared, where the model has seen at least n_ctx / 2 tokens.

Source: perplexity() and kl_divergence() in tools/perplexity/perplexity.cpp of llama.cpp. Two things differ. That tool
stores the reference's log-probabilities in 16 bits, in steps of up to 16/65535, and cuts them off 16 below the best;
here both sides are float32 logits, so figures agree to about 1e-4 nat, and a file compared with itself gives 0. And
its "+-" treats tokens as independent; here the standard error is taken over windows, whose tokens go together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig
from qwen_edge.engines.base import Engine
from qwen_edge.errors import ConfigError
from qwen_edge.gguf_header import read_header

# Rows of logits compared at a time: 4 x 151,936 float64 are 5 MB for each temporary array; more is slower.
_SLICE_ROWS = 4
_BOOTSTRAP_SAMPLES = 2000
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class QualityReport:
    """How far a candidate's predictions are from a reference's.

    KLD is KL(reference || candidate) of the next-token distributions in nats, 0 where they agree.

    Attributes:
        reference: File or engine that counts as right.
        candidate: File or engine that was measured.
        n_ctx: Window in tokens.
        chunks: Windows.
        tokens_scored: Predictions compared: (n_ctx - 1 - n_ctx // 2) a window.
        mean_kld: Mean over predictions.
        mean_kld_stderr: Standard error of it, by resampling windows; None with one window.
        kld_999: KLD that 99.9% of the predictions stay below.
        max_kld: Largest KLD of one prediction.
        same_top_share: Share of predictions, 0 to 1, whose most likely token is the same.
        ppl_reference: exp(mean of -log p(the text's token)) of the reference.
        ppl_candidate: The same of the candidate.
        rms_delta_p: Root mean square of p_candidate - p_reference of the text's token, 0 to 1.
        duration_s: Wall-clock time, loading included.
    """

    reference: str
    candidate: str
    n_ctx: int
    chunks: int
    tokens_scored: int
    mean_kld: float
    mean_kld_stderr: float | None
    kld_999: float
    max_kld: float
    same_top_share: float
    ppl_reference: float
    ppl_candidate: float
    rms_delta_p: float
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return asdict(self)


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


def evaluate_kld(
    reference: Engine | str | os.PathLike[str],
    candidate: Engine | str | os.PathLike[str],
    text: str,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QualityReport:
    """Compare a candidate's predictions with a reference's on a text.

    Both models are held at once, and the logits of one window of each (n_ctx * n_vocab * 4 bytes, 311 MB for Qwen).
    Take a text that neither training of the quantization (an importance matrix) nor tuning has seen.

    Args:
        reference: The model that counts as right, at original precision: a GGUF file, or an engine with room for n_ctx.
        candidate: The model to measure; same vocabulary.
        text: At least 2 * n_ctx tokens.
        n_ctx: Window in tokens.
        chunks: How many windows to take from the start of the text; None takes all.
        n_threads: CPU threads for files; None takes the physical cores.
        progress: Called with (done_chunks, total_chunks).

    Raises:
        ConfigError: The text is too short; the vocabularies differ; n_ctx or chunks out of range.
        ModelNotFoundError, GGUFError, NativeError: A file cannot be loaded.
        ContextOverflowError: An engine's context is smaller than n_ctx.
    """
    started_s = time.monotonic()
    if n_ctx < 16 or (chunks is not None and chunks < 1):
        raise ConfigError(f"n_ctx must be at least 16 and chunks at least 1 (not {n_ctx}, {chunks})")
    with ExitStack() as stack:
        right = _opened(reference, n_ctx, n_threads, stack)
        measured = _opened(candidate, n_ctx, n_threads, stack)
        windows = _windows(right, measured, text, n_ctx, chunks)
        parts: list[Comparison] = []
        for window in windows:
            if progress:
                progress(len(parts), len(windows))
            parts.append(_compare_window(right, measured, window))
        if progress:
            progress(len(parts), len(windows))
    kld = np.concatenate([part.kld for part in parts])
    log_p_reference = np.concatenate([part.log_p_reference for part in parts])
    log_p_candidate = np.concatenate([part.log_p_candidate for part in parts])
    delta_p = np.exp(log_p_candidate) - np.exp(log_p_reference)
    return QualityReport(
        reference=_name(reference),
        candidate=_name(candidate),
        n_ctx=n_ctx,
        chunks=len(parts),
        tokens_scored=len(kld),
        mean_kld=float(kld.mean()),
        mean_kld_stderr=bootstrap_stderr(np.array([part.kld.mean() for part in parts])),
        kld_999=float(np.quantile(kld, 0.999)),
        max_kld=float(kld.max()),
        same_top_share=float(np.concatenate([part.same_top for part in parts]).mean()),
        ppl_reference=float(np.exp(-log_p_reference.mean())),
        ppl_candidate=float(np.exp(-log_p_candidate.mean())),
        rms_delta_p=float(np.sqrt(np.mean(delta_p**2))),
        duration_s=time.monotonic() - started_s,
    )


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


def bootstrap_stderr(chunk_means: NDArray[np.float64]) -> float | None:
    """Return the standard error of the mean of chunk means, by resampling chunks; None for fewer than two.

    Args:
        chunk_means: float64 [n_chunks], of chunks of equal length.

    Source: B. Efron, Bootstrap methods (1979); the resampled unit is the chunk, because tokens of one text depend on
    each other.
    """
    count = len(chunk_means)
    if count < 2:
        return None
    random = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = random.integers(0, count, size=(_BOOTSTRAP_SAMPLES, count))
    return float(chunk_means[picks].mean(axis=1).std(ddof=1))


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


def _compare_window(right: Engine, measured: Engine, window: list[int]) -> Comparison:
    """Score one window: row i predicts token i + 1, so the last row has nothing to predict."""
    first = len(window) // 2
    tokens = _with_bos(right, window)
    # Copies, so that the first half of the reference's logits is free before the candidate's are made.
    reference = right.score(tokens)[first:-1].copy()
    candidate = measured.score(tokens)[first:-1]
    return compare_logits(reference, candidate, np.array(window[first + 1 :], dtype=np.int64))


def _windows(right: Engine, measured: Engine, text: str, n_ctx: int, chunks: int | None) -> list[list[int]]:
    # Control tokens that a text spells out are text here, as in llama-perplexity.
    tokens = _text_tokens(right, text)
    if right.info.n_vocab != measured.info.n_vocab or tokens != _text_tokens(measured, text):
        raise ConfigError(
            f"the two models have different vocabularies ({right.info.n_vocab} and {measured.info.n_vocab} tokens)",
            hint="KL divergence compares files of one model.",
        )
    if len(tokens) < 2 * n_ctx:
        raise ConfigError(
            f"the text has {len(tokens)} tokens; with n_ctx {n_ctx} at least {2 * n_ctx} are needed",
            hint="Take a longer text or a smaller n_ctx.",
        )
    available = len(tokens) // n_ctx
    count = available if chunks is None else min(chunks, available)
    return [tokens[start : start + n_ctx] for start in range(0, count * n_ctx, n_ctx)]


def _text_tokens(engine: Engine, text: str) -> list[int]:
    bos = _bos(engine)
    return ([] if bos is None else [bos]) + engine.tokenize(text, parse_special=False)


def _with_bos(engine: Engine, window: list[int]) -> list[int]:
    bos = _bos(engine)
    return window if bos is None else [bos, *window[1:]]


def _bos(engine: Engine) -> int | None:
    """Return the token that the file wants at the start of every text; Qwen's files want none."""
    if engine.info.path is None:
        return None
    metadata = read_header(engine.info.path).metadata
    wants_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    return int(metadata["tokenizer.ggml.bos_token_id"]) if wants_bos else None


def _opened(
    model: Engine | str | os.PathLike[str], n_ctx: int, n_threads: int | None, stack: ExitStack
) -> Engine:
    if isinstance(model, Engine):
        return model
    from qwen_edge.engines.llama import LlamaEngine

    config = LoadConfig(n_ctx=n_ctx, n_batch=min(n_ctx, 512), n_threads=n_threads)
    engine = LlamaEngine(Path(model), config)
    stack.callback(engine.close)
    return engine


def _name(model: Engine | str | os.PathLike[str]) -> str:
    if isinstance(model, Engine):
        return str(model.info.path or model.info.name or model.info.engine)
    return os.fspath(model)
