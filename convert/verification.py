"""Does a file compute what its checkpoint does? The same prompts through its engine and the reference.

The limits tell a file that lost precision from one that is wrong: a matrix that is missing, transposed or under
another name, a wrong rotary base or a wrong head give divergences of several nats, far beyond any of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import AdapterLike, LoadConfig
from qwen_edge.convert.adapter_merge import apply_adapters
from qwen_edge.convert.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.convert.reference import Reference
from qwen_edge.convert.reranker import reranker_head
from qwen_edge.convert.rows import read_tensor
from qwen_edge.convert.vocabulary import read_vocabulary
from qwen_edge.engines.base import Engine
from qwen_edge.engines.llama import LlamaEngine
from qwen_edge.engines.onnx import OnnxEngine
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import ConfigError, UnsupportedError, VerificationError
from qwen_edge.gguf_header import read_header
from qwen_edge.logits import compare_logits
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES, file_type_of_id

# Languages, code, numbers and the chat's special tokens: they reach different rows of the embedding. Long enough
# for positions to matter, short enough that the logits of all of them (256 x 151,936 float32) take 156 MB.
PROMPTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The three laws of thermodynamics are usually stated as follows: energy can neither be created nor destroyed, "
    "the entropy of a closed system never decreases, and absolute zero cannot be reached in a finite number of steps.",
    "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "北京是中华人民共和国的首都，位于华北平原的北部，是全国的政治、文化和国际交往中心。",
    "Der Zug nach Köln fährt um 17:43 Uhr von Gleis 12 ab; die Fahrt kostet 89,90 € und dauert 4 Stunden.",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2, 3], "celsius": true}}',
)
_MAX_PROMPT_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file of one type may differ by.

    Attributes:
        mean_kld: Mean KL divergence from the reference, in nats.
        top1_agreement: Least share of tokens, 0 to 1, after which both find the same token most likely.
    """

    mean_kld: float
    top1_agreement: float


# Source: enum llama_pooling_type in llama.cpp's include/llama.h.
_POOLING_NONE, _POOLING_MEAN, _POOLING_CLS, _POOLING_LAST, _POOLING_RANK = range(5)

# Ten times and more what was measured on tiny-qwen3 and on checkpoints with random weights, whose worst mean KLD was
# 2e-12 in F32, 3e-6 in F16, 3e-4 in BF16, 4e-3 in Q8_0, 3e-3 in Q6_K, 6e-3 in Q5_K_M, 2e-2 in Q4_K_M.
LIMITS: dict[str, Limits] = {
    "F32": Limits(mean_kld=1e-6, top1_agreement=0.99),
    "F16": Limits(mean_kld=1e-4, top1_agreement=0.97),
    "BF16": Limits(mean_kld=5e-3, top1_agreement=0.92),
    "Q8_0": Limits(mean_kld=0.04, top1_agreement=0.85),
    "Q6_K": Limits(mean_kld=0.06, top1_agreement=0.80),
    "Q5_K_M": Limits(mean_kld=0.1, top1_agreement=0.75),
    "Q4_K_M": Limits(mean_kld=0.4, top1_agreement=0.65),
}
# What an ONNX folder's coarsest weights are held to: the limits of the GGUF type of about as many bits.
_ONNX_LIMITS = {"f32": "F32", "f16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
_LOWEST = Limits(mean_kld=2.0, top1_agreement=0.3)


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """How far a file is from its checkpoint.

    Attributes:
        path: The file.
        checkpoint: What it was compared with.
        type: Its file type, a key of FILE_TYPES, or "" where it has none that is known; of an ONNX folder the type of
            its layers' weights.
        prompts: Texts that went through both.
        tokens: Predictions compared.
        max_logit_error: Largest absolute difference of two logits.
        mean_logit_error: Mean absolute difference.
        top1_agreement: Share of predictions with the same most likely token, 0 to 1.
        mean_kld: Mean KL(checkpoint || file), in nats.
        max_kld: Largest of one prediction.
        max_pooled_error: Of an embedding (of length 1) or a reranker's probabilities the largest difference of one
            component. None for a language model.
        limits: What a file of this type may differ by.
        duration_s: Wall-clock time.
    """

    path: Path
    checkpoint: Path
    type: str
    prompts: int
    tokens: int
    max_logit_error: float
    mean_logit_error: float
    top1_agreement: float
    mean_kld: float
    max_kld: float
    max_pooled_error: float | None
    limits: Limits
    duration_s: float

    @property
    def is_within_limits(self) -> bool:
        """Whether the file is what its checkpoint makes it."""
        return (
            self.mean_kld <= self.limits.mean_kld
            and self.top1_agreement >= self.limits.top1_agreement
            and (self.max_pooled_error is None or self.max_pooled_error <= self._pooled_limit)
        )

    @property
    def _pooled_limit(self) -> float:
        # A divergence of d nats moves a probability by at most sqrt(d / 2): Pinsker's inequality.
        return float(np.sqrt(self.limits.mean_kld / 2))

    def require(self) -> None:
        """Pass, or raise.

        Raises:
            VerificationError: The file is beyond the limits of its type.
        """
        if not self.is_within_limits:
            raise VerificationError(
                f"{self.path} does not compute what {self.checkpoint} does: mean KLD {self.mean_kld:.3g} "
                f"(a {self.type or 'file'} stays below {self.limits.mean_kld:g}), same top token "
                f"{self.top1_agreement:.1%} (at least {self.limits.top1_agreement:.0%})",
                hint="Convert it again from this checkpoint; if it stays so, please report both.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            **asdict(self),
            "path": str(self.path),
            "checkpoint": str(self.checkpoint),
            "is_within_limits": self.is_within_limits,
        }


def verify_file(
    path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    adapters: Sequence[AdapterLike] = (),
    n_threads: int | None = None,
) -> VerificationReport:
    """Compare a GGUF file or an ONNX folder with the checkpoint it was made from.

    The file is in memory as when it runs; of the checkpoint one layer at a time, in float32.

    Args:
        path: The file or folder, of any type.
        checkpoint: Its checkpoint.
        adapters: PEFT adapters that were merged into the file, see `apply_adapters`.
        n_threads: CPU threads of the engine; None takes the physical cores.

    Raises:
        ModelNotFoundError, GGUFError, CheckpointError, UnsupportedError: One of the two cannot be read.
        ConfigError: They have different vocabularies.
        VerificationError: The file computes values that are no numbers.
        NativeError: The engine fails.
    """
    started_s = time.monotonic()
    path = Path(path)
    opened = open_checkpoint(checkpoint)
    if adapters:
        opened = apply_adapters(opened, adapters)
    reference = Reference(opened)
    # The KV cache in F32: what is measured is the file.
    config = LoadConfig(
        n_ctx=_MAX_PROMPT_TOKENS, n_batch=_MAX_PROMPT_TOKENS, kv_type="f32", n_threads=n_threads
    )
    engine: Engine
    pooling: object = _POOLING_NONE
    if is_onnx(path):
        engine = OnnxEngine(path, config)
        type_name = str(engine.info.settings["precision"]["weights"])
        limits = LIMITS[_ONNX_LIMITS[type_name]]
    else:
        header = read_header(path)
        engine = LlamaEngine(path, config)
        stated = file_type_of_id(header.metadata.get("general.file_type"))
        type_name = stated.name if stated is not None else ""
        limits = limits_of(type_name)
        pooling = header.metadata.get(f"{engine.info.architecture}.pooling_type", _POOLING_NONE)
    try:
        if engine.info.n_vocab != reference.config.vocab_size:
            raise ConfigError(
                f"{path} has {engine.info.n_vocab} tokens, {opened.folder} has {reference.config.vocab_size}",
                hint="Compare a file with the checkpoint it was made from.",
            )
        sequences = [engine.tokenize(prompt)[:_MAX_PROMPT_TOKENS] for prompt in PROMPTS]
        states = reference.hidden_states(sequences)
        differences = _compare_logits(engine, sequences, reference.head(states))
        pooled_error = None
        if pooling != _POOLING_NONE:
            expected = _pool(states, pooling, opened, reference)
            found = list(engine.pooled(sequences))
            if pooling != _POOLING_RANK:
                found = [vector / np.linalg.norm(vector) for vector in found]
            pooled_error = max(
                float(np.abs(left - right).max()) for left, right in zip(found, expected, strict=True)
            )
    finally:
        engine.close()
    return VerificationReport(
        path=path,
        checkpoint=opened.folder,
        type=type_name,
        prompts=len(sequences),
        **differences,
        max_pooled_error=pooled_error,
        limits=limits,
        duration_s=time.monotonic() - started_s,
    )


def limits_of(type_name: str) -> Limits:
    """Return the limits of a file type: those of the nearest one with at most as many bits a weight.

    Args:
        type_name: A key of FILE_TYPES, or "" for a type that is not known.
    """
    if type_name in LIMITS:
        return LIMITS[type_name]
    if type_name not in FILE_TYPES:
        return _LOWEST
    bits = _bits(type_name)
    below = [name for name in LIMITS if _bits(name) <= bits]
    return LIMITS[max(below, key=_bits)] if below else _LOWEST


def _bits(type_name: str) -> float:
    row = TENSOR_TYPES[FILE_TYPES[type_name].base]
    return 8 * row.block_bytes / row.block_weights


def _compare_logits(
    engine: Engine, sequences: list[list[int]], expected: list[NDArray[np.float32]]
) -> dict[str, Any]:
    """Return the fields of the report that tell of logits."""
    errors: list[float] = []
    largest = 0.0
    comparisons = []
    for tokens, reference in zip(sequences, expected, strict=True):
        logits = engine.score(tokens)
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"{engine.info.path} computes values that are infinite or no numbers",
                hint="It is damaged, or was made from a damaged checkpoint: convert it again."
                if engine.info.engine != "llama.cpp"
                else "Load it with safe_kernels=True: if that mends it, the native library's fast kernels are at fault. "
                "If not, the file is damaged: convert it again.",
            )
        # The tokens that follow do not matter here: any will do.
        comparisons.append(compare_logits(reference, logits, np.zeros(len(tokens), np.int64)))
        np.abs(np.subtract(logits, reference, out=logits), out=logits)
        largest = max(largest, float(logits.max()))
        errors += logits.mean(axis=1, dtype=np.float64).tolist()
    kld = np.concatenate([comparison.kld for comparison in comparisons])
    same_top = np.concatenate([comparison.same_top for comparison in comparisons])
    return {
        "tokens": len(kld),
        "max_logit_error": largest,
        "mean_logit_error": float(np.mean(errors)),
        "top1_agreement": float(same_top.mean()),
        "mean_kld": float(kld.mean()),
        "max_kld": float(kld.max()),
    }


def _pool(
    states: list[NDArray[np.float32]], pooling: object, checkpoint: Checkpoint, reference: Reference
) -> list[NDArray[np.float32]]:
    """Return what the file's pooling makes of the reference's states: a vector for each text."""
    if pooling == _POOLING_RANK:
        vocabulary = read_vocabulary(checkpoint.folder, reference.config.vocab_size, checkpoint.config)
        head = reranker_head(checkpoint, reference.config, vocabulary, reference.tensors)
        matrix = read_tensor(head.tensor)
        scores = [matrix @ state[-1] for state in states]
        exponentials = [np.exp(score - score.max()) for score in scores]
        return [exponential / exponential.sum() for exponential in exponentials]
    picked = {
        _POOLING_MEAN: [state.mean(axis=0) for state in states],
        _POOLING_CLS: [state[0] for state in states],
        _POOLING_LAST: [state[-1] for state in states],
    }
    if pooling not in picked:
        raise UnsupportedError(f"the file's pooling type is {pooling}, which no Qwen model has")
    return [vector / np.linalg.norm(vector) for vector in picked[pooling]]
