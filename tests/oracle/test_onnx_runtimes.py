"""Exported folders in other runtimes: onnxruntime-genai, and ONNX Runtime with the OpenVINO provider.

QWEN_EDGE_GENAI_PYTHON and QWEN_EDGE_OPENVINO_PYTHON name interpreters that have the packages onnxruntime-genai, and
onnxruntime-openvino with what qwen-edge depends on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.convert import OnnxPrecision, export_onnx

pytestmark = pytest.mark.oracle

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3"
QUESTIONS = ["What is 12 + 30?", "What is the capital of France?", "Say Anna."]

GENAI = """
import json, sys
import onnxruntime_genai as genai
model = genai.Model(sys.argv[1])
answers = []
for prompt in json.loads(sys.argv[2]):
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + 24, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    answers.append(tokens)
print(json.dumps(answers))
"""

OURS = """
import json, sys, warnings
import qwen_edge
with qwen_edge.load(sys.argv[1], n_ctx=512, n_threads=1, provider=sys.argv[3], prefix_cache=False) as model:
    answers = []
    for prompt in json.loads(sys.argv[2]):
        with model.session() as session:
            stream = session.stream_tokens(prompt, max_tokens=24, sampling=qwen_edge.SamplingConfig(temperature=0))
            for _ in stream:
                pass
            answers.append(stream.reply.text)
    print(json.dumps([answers, model.info.settings["nodes"]]))
"""


def interpreter(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no interpreter")
    return path


def run(python: str, code: str, *arguments: str) -> list[object]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [python, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    answer: list[object] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer


@pytest.fixture(scope="module", params=["f32", "int8", "int4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(
        TINY, tmp_path_factory.mktemp("runtimes") / "o", precision=OnnxPrecision(weights=request.param)
    ).path


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return [
        tokenizer.encode(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            add_special_tokens=False,
        ).ids
        for question in QUESTIONS
    ]


def test_genai_answers_as_we_do(folder: Path, prompts: list[list[int]]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    theirs = run(interpreter("QWEN_EDGE_GENAI_PYTHON"), GENAI, str(folder), json.dumps(prompts))
    ours, _ = run(sys.executable, OURS, str(folder), json.dumps(prompts), "cpu")
    assert [tokenizer.decode(tokens) for tokens in theirs] == ours


def test_the_openvino_provider_answers_as_the_cpu_does(folder: Path, prompts: list[list[int]]) -> None:
    python = interpreter("QWEN_EDGE_OPENVINO_PYTHON")
    arguments = (str(folder), json.dumps(prompts))
    theirs, nodes = run(python, OURS, *arguments, "openvino")
    ours, _ = run(sys.executable, OURS, *arguments, "cpu")
    assert theirs == ours
    assert isinstance(nodes, dict)
    assert nodes["OpenVINOExecutionProvider"] > nodes.get("CPUExecutionProvider", 0)
