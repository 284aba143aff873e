"""Exported folders run in ONNX Runtime as plainly as can be: feeds, caches, logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Caches = dict[str, NDArray[np.float32]]


def session(folder: Path) -> onnxruntime.InferenceSession:
    """Return a session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


class OnnxModel:
    """One folder in a session with one thread."""

    def __init__(self, folder: Path) -> None:
        self.session = session(folder)
        self.inputs = {each.name: each.shape for each in self.session.get_inputs()}
        self.outputs = {each.name: each.shape for each in self.session.get_outputs()}
        defaults = {each.name for each in self.session.get_overridable_initializers()}
        self.has_positions = "logits_positions" in defaults | self.inputs.keys()
        self.is_plain = "position_ids" in self.inputs

    def caches(self, batch: int, length: int) -> Caches:
        """Return zeros for the keys and values of `length` tokens."""
        return {
            name: np.zeros((batch, shape[1], length, shape[3]), np.float32)
            for name, shape in self.inputs.items()
            if name.startswith("past_key_values.")
        }

    def run(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Caches | None = None,
        *,
        past: Sequence[int] | None = None,
        mask: NDArray[np.int64] | None = None,
        positions: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float32], Caches]:
        """Run tokens of each sequence behind what the caches hold.

        Args:
            tokens: Of each sequence, equally many.
            caches: What a run before returned; None for the beginning.
            past: Tokens of each sequence that are in the caches already; by default all that fit.
            mask: attention_mask, where it is not all ones.
            positions: Of the logits, by default all.

        Returns:
            float32 [batch, positions, vocab], and the caches that follow.
        """
        ids = np.asarray(tokens, np.int64)
        batch, n_tokens = ids.shape
        caches = self.caches(batch, 0) if caches is None else caches
        held = next(iter(caches.values())).shape[2]
        starts = np.full(batch, held) if past is None else np.asarray(past)
        feeds: dict[str, Any] = {"input_ids": ids, **caches}
        total = held + n_tokens if self.is_plain else int(starts.max()) + n_tokens
        feeds["attention_mask"] = np.ones((batch, total), np.int64) if mask is None else mask
        if self.is_plain:
            feeds["position_ids"] = starts[:, np.newaxis] + np.arange(n_tokens)
        if self.has_positions:
            feeds["logits_positions"] = np.asarray(
                range(n_tokens) if positions is None else positions, np.int64
            )
        logits, *kept = self.session.run(None, feeds)
        names = [name.replace("present.", "past_key_values.") for name in list(self.outputs)[1:]]
        return logits, dict(zip(names, kept, strict=True))


def bind_in_place(model: OnnxModel, tokens: Sequence[int], past: int, caches: Caches) -> NDArray[np.float32]:
    """Run tokens with keys and values written into the buffers that they are read from: float32 [tokens, vocab]."""
    binding = model.session.io_binding()
    feeds = {
        "input_ids": np.asarray([tokens], np.int64),
        "attention_mask": np.ones((1, past + len(tokens)), np.int64),
        "logits_positions": np.arange(len(tokens)),
    }
    for name, array in {**feeds, **caches}.items():
        # bind_cpu_input() does not know of inputs with a default.
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("logits", "cpu")
    for name, array in caches.items():
        binding.bind_output(
            name.replace("past_key_values.", "present."),
            "cpu",
            0,
            np.float32,
            array.shape,
            array.ctypes.data,
        )
    model.session.run_with_iobinding(binding)
    logits: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0][0]
    return logits
