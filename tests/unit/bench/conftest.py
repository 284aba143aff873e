"""Measurements made up for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwen_edge.bench.advice import Candidate
from qwen_edge.bench.record import FileResult, MemoryUse, Samples

MakeResult = Callable[..., FileResult]
MakeCandidate = Callable[..., Candidate]


@pytest.fixture
def make_result() -> MakeResult:
    def make(
        file: str = "m-Q4_0.gguf", size_bytes: int = 4_000_000, decode: tuple[float, ...] = (50.0,)
    ) -> FileResult:
        return FileResult(
            file=file,
            sha256="ab" * 32,
            size_bytes=size_bytes,
            bits_per_weight=4.5,
            engine="llama.cpp",
            settings={"threads": 2, "n_ctx": 768, "flash_attention": "off"},
            workload={"prompt_tokens": 512, "generate_tokens": 128, "depth": 0, "repetitions": len(decode)},
            prefill_tokens_per_s=Samples((400.0, 410.0, 390.0)),
            decode_tokens_per_s=Samples(decode),
            ttft_s=1.25,
            load_s=0.5,
            memory=MemoryUse(peak_rss_bytes=80_000_000, private_dirty_bytes=None),
        )

    return make


@pytest.fixture
def make_candidate(make_result: MakeResult) -> MakeCandidate:
    def make(
        label: str,
        size_mb: float,
        decode: float | tuple[float, ...],
        kld: float = 0.01,
        same_top: float = 0.92,
        is_reference: bool = False,
    ) -> Candidate:
        samples = decode if isinstance(decode, tuple) else (decode,)
        return Candidate(
            label=label,
            mean_kld=kld,
            same_top_share=same_top,
            is_reference=is_reference,
            cost=make_result(f"m-{label}.gguf", int(size_mb * 1e6), samples),
        )

    return make
