"""Make reference_logits.npz: the logits of transformers, in float32, for checkpoints with random weights.

Needs torch and transformers, which the project does not: run it in an environment of its own, from the root.

    python -m tests.golden.make_reference_logits
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.golden.checkpoints import CHECKPOINTS, tokens_of

HERE = Path(__file__).parent


def logits_of(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return float32 [n_tokens, vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return logits


def main() -> None:
    arrays = {}
    for name, write in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            arrays[name] = logits_of(write(Path(folder)), tokens_of(name))
    np.savez_compressed(HERE / "reference_logits.npz", **arrays)


if __name__ == "__main__":
    main()
