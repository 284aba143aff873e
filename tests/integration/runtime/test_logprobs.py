from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_edge import Model, load
from qwen_edge.config import GREEDY, SamplingConfig
from qwen_edge.convert import convert_checkpoint
from tests import synthetic

PENALISED = SamplingConfig(temperature=0.9, top_k=20, presence_penalty=1.5, repetition_penalty=1.2, seed=4)


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED], ids=["greedy", "penalised"])
@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_logprobs_are_the_log_softmax_of_score(
    sampling: SamplingConfig, engine: str, tmp_path: Path, tiny_onnx: Path
) -> None:
    path = tmp_path / "f32.gguf" if engine == "gguf" else tiny_onnx
    if engine == "gguf":
        convert_checkpoint(synthetic.TINY_QWEN3, path, dtype="f32")
    with (
        load(path, n_ctx=512, n_threads=1, safe_kernels=False, kv_type="f32") as model,
        model.session() as session,
    ):
        reply = session.send("What is 12 + 30?", thinking="on", sampling=sampling, max_tokens=240, logprobs=5)
        assert reply.logprobs is not None
        # What the engine puts in to close a thought is not generated, and has none.
        assert reply.stats.closing_tokens == 0
        assert len(reply.logprobs) == reply.stats.generated_tokens
        prompt = model.engine.tokenize(model.template.render(session.messages[:-1], enable_thinking=True))
        tokens = [entry.token for entry in reply.logprobs]
        logits = model.engine.score([*prompt, *tokens])[len(prompt) - 1 : -1].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        for row, entry in zip(expected, reply.logprobs, strict=True):
            assert abs(entry.logprob - row[entry.token]) < 1e-3
            assert [each.logprob for each in entry.top] == pytest.approx(
                np.sort(row)[::-1][:5].tolist(), abs=1e-3
            )
            for each in entry.top:
                assert abs(each.logprob - row[each.token]) < 1e-3
                assert each.data == model.engine.token_bytes(each.token)
        if sampling is GREEDY:
            assert all(entry.top[0].token == entry.token for entry in reply.logprobs)


def test_asking_for_them_changes_no_token(tiny_model: Model) -> None:
    texts = []
    for logprobs in (None, 3):
        with tiny_model.session() as session:
            texts.append(session.send("Say Anna.", sampling=PENALISED, max_tokens=40, logprobs=logprobs).text)
    assert texts[0] == texts[1]
