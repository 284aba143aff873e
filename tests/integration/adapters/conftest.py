from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[3]))  # for tests.adapters and tests.synthetic

from qwen_edge import Model, load
from qwen_edge.convert import convert_checkpoint
from tests.adapters import MadeAdapter, write_adapter
from tests.synthetic import TINY_QWEN3

# Six of the seven matrices of a layer, in attention and feed-forward.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def tiny_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/tiny-qwen3 as an F32 GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf"
    convert_checkpoint(TINY_QWEN3, path, dtype="f32")
    return path


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> MadeAdapter:
    """A LoRA of rank 4 for examples/tiny-qwen3."""
    return write_adapter(
        tmp_path_factory.mktemp("adapter") / "first",
        TINY_QWEN3,
        seed=1,
        strength=0.05,
        target_modules=TARGETS,
    )


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> MadeAdapter:
    """An rsLoRA whose ranks and alphas differ by matrix."""
    return write_adapter(
        tmp_path_factory.mktemp("adapter") / "second",
        TINY_QWEN3,
        seed=2,
        strength=0.05,
        use_rslora=True,
        ranks=lambda module: 8 if module.endswith("down_proj") else 4,
        rank_pattern={"down_proj": 8},
        alpha_pattern={"layers.1.self_attn.q_proj": 16},
    )


class Score:
    """Scores the same text with a file: score(path, adapters=…) -> float32 [tokens, vocabulary]."""

    def __call__(self, path: Path, **settings: object) -> NDArray[np.float32]:
        with load(path, n_ctx=256, n_threads=1, safe_kernels=False, kv_type="f32", **settings) as model:
            return model.engine.score(self._tokens(model))

    def tokens(self, path: Path) -> list[int]:
        """Return the text's tokens."""
        with load(path, n_ctx=256, n_threads=1, safe_kernels=False) as model:
            return self._tokens(model)

    def _tokens(self, model: Model) -> list[int]:
        text = (TINY_QWEN3 / "eval" / "prose.txt").read_text(encoding="utf-8")
        return model.engine.tokenize(text)[:128]


@pytest.fixture(scope="session")
def score() -> Score:
    return Score()
