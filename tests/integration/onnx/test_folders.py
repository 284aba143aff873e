"""Folders that load, and folders that are damaged, incomplete or of another kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qwen_edge import load
from qwen_edge.config import GREEDY
from qwen_edge.engines import onnx_runtime, onnx_tokenizer
from qwen_edge.engines.onnx_runtime import UntestedProviderWarning
from qwen_edge.errors import (
    ConfigError,
    FormatError,
    MissingExtraError,
    ModelNotFoundError,
    QwenEdgeError,
    UnsupportedError,
)

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-qwen3"


@pytest.mark.parametrize("precision", ["tiny_onnx", "tiny_int4"])
def test_a_folder_and_its_graph_are_the_model(precision: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(precision)
    for path in (folder, folder / "model.onnx"):
        with load(path, n_ctx=256, n_threads=1) as model, model.session() as session:
            reply = session.send("What is the capital of Greece?", thinking="off", sampling=GREEDY)
            assert reply.text == "Athens."
            info = model.info
    assert (info.engine, info.architecture, info.n_vocab) == ("onnxruntime", "qwen3", 4096)
    assert info.weights_bytes == (folder / "model.onnx.data").stat().st_size
    assert info.settings["kv_type"] == "f32"
    assert info.settings["nodes"]["CPUExecutionProvider"] > 50
    assert json.loads(json.dumps(info.settings)) == info.settings


def test_facts_are_those_of_the_gguf_file(tiny_onnx: Path, tiny_bf16: Path) -> None:
    with load(tiny_onnx, n_threads=1) as here, load(tiny_bf16, n_threads=1, safe_kernels=False) as there:
        for name in ("architecture", "n_vocab", "n_params", "n_ctx_train", "special_texts"):
            assert getattr(here.info, name) == getattr(there.info, name), name
        assert here.info.chat_template.strip() == there.info.chat_template.strip()


def cut_weights(folder: Path) -> None:
    data = folder / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def change_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return apply


def without_positions(model: onnx.ModelProto) -> None:
    (wanted,) = [each for each in model.graph.input if each.name == "logits_positions"]
    model.graph.input.remove(wanted)


def without_caches(model: onnx.ModelProto) -> None:
    for each in [each for each in model.graph.input if each.name.startswith("past")]:
        model.graph.input.remove(each)


def another_format(model: onnx.ModelProto) -> None:
    (entry,) = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), "format": 99})


def newer_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def newer_form(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def kernel_for_no_type(model: onnx.ModelProto) -> None:
    """Well formed, and no kernel takes cosines of BF16."""
    value = onnx.helper.make_tensor_value_info("words", onnx.TensorProto.BFLOAT16, [2])
    model.graph.input.append(value)
    model.graph.node.append(onnx.helper.make_node("Cos", ["words"], ["more"], name="cosine"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.BFLOAT16, [2]))
    model.opset_import[0].version = 22


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(("damage", "error", "message"), [
    (cut_weights, FormatError, r"model\.onnx\.data is too short"),
    (remove("model.onnx.data"), FormatError, "which is not there"),
    (remove("tokenizer.json"), ModelNotFoundError, r"has no tokenizer\.json"),
    (remove("config.json"), ModelNotFoundError, r"has no config\.json"),
    (write("model.onnx", "hello"), FormatError, r"no ONNX file"),
    (write("tokenizer.json", "{}"), FormatError, r"tokenizer\.json is no tokenizer"),
    (write("config.json", "[]"), FormatError, "no JSON object"),
    (write("config.json", "{}"), FormatError, "incomplete or damaged"),
    (write("generation_config.json", "{"), FormatError, "damaged"),
    (change_graph(without_positions), UnsupportedError, "lacks the input 'logits_positions'"),
    (change_graph(without_caches), UnsupportedError, "KV cache"),
    (change_graph(lambda model: model.metadata_props.pop()), UnsupportedError, "lacks the metadata 'qwen_edge'"),
    (change_graph(another_format), UnsupportedError, "format 99"),
    (change_graph(newer_operators), UnsupportedError, r"(?s)needs more than ONNX Runtime .*pip install -U"),
    (change_graph(newer_form), UnsupportedError, r"(?s)needs more than ONNX Runtime .*pip install -U"),
    (change_graph(kernel_for_no_type), UnsupportedError, "needs more than ONNX Runtime"),
    (change_graph(unknown_operator), FormatError, "cannot load"),
])  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(
    folder: Path, damage: Callable[[Path], None], error: type[QwenEdgeError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        load(folder, n_threads=1)


def test_what_is_no_folder_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="qwen-edge convert"):
        load(CHECKPOINT)
    with pytest.raises(ModelNotFoundError, match=r"no file .*absent\.onnx"):
        load(tmp_path / "absent.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_what_is_not_installed_is_named(
    tiny_onnx: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    onnx_runtime._runtime.cache_clear()
    onnx_tokenizer._tokenizer.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=rf"{package}.*\n.*qwen-edge\[onnx\]"):
            load(tiny_onnx, n_threads=1)
    finally:
        onnx_runtime._runtime.cache_clear()


def test_without_llama_cpp_onnx_runs_and_gguf_says_so(
    tiny_onnx: Path, tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_EDGE_NATIVE", str(tmp_path))
    code = (
        "import sys\n"
        "sys.modules['llama_cpp'] = None\n"
        "import qwen_edge\n"
        "with qwen_edge.load(sys.argv[1], n_threads=1) as model, model.session() as session:\n"
        "    print(session.send('Say Anna.', thinking='off', sampling=qwen_edge.SamplingConfig(temperature=0)).text)\n"
        "try: qwen_edge.load(sys.argv[2], safe_kernels=False)\n"
        "except qwen_edge.QwenEdgeError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_onnx), str(tiny_bf16)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    answer, error = result.stdout.split("\n", 1)
    assert answer == "Anna"
    assert "llama.cpp engine is not built yet" in error
    assert "qwen-edge setup" in error
    assert 'Without a compiler: pip install "qwen-edge[onnx]"' in error


@pytest.mark.parametrize("settings", [
    {"adapters": ["a.gguf"]},
    {"kv_type": "bf16"},
    {"kv_type": "q8_0", "flash_attention": "on"},
    {"flash_attention": "on"},
    {"load_mode": "mmap"},
    {"safe_kernels": True},
])  # fmt: skip
def test_settings_of_llama_cpp_are_refused(tiny_onnx: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(settings))}.* does not apply to an ONNX model"):
        load(tiny_onnx, **settings)


def test_a_context_beyond_the_positions_is_refused(tiny_onnx: Path) -> None:
    with pytest.raises(ConfigError, match=r"positions for 4096 tokens\n.*n_ctx=4096"):
        load(tiny_onnx, n_ctx=4097)
    load(tiny_onnx, n_ctx=4096, n_threads=1).close()


@pytest.mark.parametrize(("provider", "package"), [
    ("openvino", "onnxruntime-openvino"),
    ("cuda", "onnxruntime-gpu"),
    ("CUDAExecutionProvider", "onnxruntime-gpu"),
    ("qnn", "onnxruntime-qnn"),
    ("directml", "onnxruntime-directml"),
    ("coreml", "macOS"),
    ("xnnpack", "use_xnnpack"),
    ("abacus", "Known by name: cpu, openvino"),
])  # fmt: skip
def test_an_absent_provider_names_its_package(
    tiny_onnx: Path, provider: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime._runtime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=rf"no provider '{provider}'.*\n.*{package}"):
        load(tiny_onnx, provider=provider)


def test_an_untested_provider_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["QNNExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx_runtime._runtime(), "get_available_providers", lambda: available)
    with pytest.warns(UntestedProviderWarning, match="QNNExecutionProvider is not tested"):
        assert onnx_runtime.provider_name("qnn") == "QNNExecutionProvider"


def test_a_gguf_file_has_no_provider(tiny_bf16: Path) -> None:
    with pytest.raises(ConfigError, match="does not apply to a GGUF file"):
        load(tiny_bf16, provider="openvino")
