"""Adapters beside a model: what is refused and how, whose they are, and the command line."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import load
from qwen_edge.cli.main import main
from qwen_edge.config import GREEDY, AdapterConfig, LoadConfig
from qwen_edge.convert import convert_adapter, convert_checkpoint
from qwen_edge.errors import ConfigError, GGUFError, ModelNotFoundError
from tests import synthetic
from tests.adapters import MadeAdapter, write_adapter
from tests.synthetic import TINY_QWEN3

QUICK: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "safe_kernels": False}


@pytest.fixture(scope="module")
def adapter_gguf(adapter: MadeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "first.gguf"
    convert_adapter(adapter.folder, TINY_QWEN3, path)
    return path


def test_settings_name_the_adapters(tiny_f32: Path, adapter_gguf: Path) -> None:
    config = LoadConfig(adapters=(AdapterConfig(path=adapter_gguf, scale=0.25),), **QUICK)
    with load(tiny_f32, config) as model:
        assert model.info.settings["adapters"] == [{"path": str(adapter_gguf), "scale": 0.25}]
    with load(tiny_f32, **QUICK) as model:
        assert model.info.settings["adapters"] == []


def test_sessions_answer_with_the_adapter(tiny_f32: Path, adapter: MadeAdapter, tmp_path: Path) -> None:
    """The same words from the merged file and from the adapter beside the model, and others than the model's own."""
    merged, beside = tmp_path / "merged.gguf", tmp_path / "a.gguf"
    convert_checkpoint(TINY_QWEN3, merged, dtype="f32", adapters=[(adapter.folder, 3)])
    convert_adapter(adapter.folder, TINY_QWEN3, beside)
    answers = []
    for path, adapters in ((merged, []), (tiny_f32, [(beside, 3)]), (tiny_f32, [])):
        with load(path, adapters=adapters, **QUICK) as model, model.session() as session:
            reply = session.send(
                "What is the capital of Greece?", thinking="off", sampling=GREEDY, max_tokens=20
            )
            answers.append(reply.text)
    assert answers[0] == answers[1]
    assert answers[2] == "Athens." != answers[0]


def test_missing_and_other_files_are_told_apart(
    tiny_f32: Path, adapter: MadeAdapter, adapter_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match="no adapter file"):
        load(tiny_f32, adapters=[tmp_path / "nowhere.gguf"], **QUICK)
    with pytest.raises(ModelNotFoundError, match="is a folder") as raised:
        load(tiny_f32, adapters=[adapter.folder], **QUICK)
    assert f"convert {adapter.folder} --base" in str(raised.value)
    with pytest.raises(GGUFError, match="safetensors"):
        load(tiny_f32, adapters=[adapter.folder / "adapter_model.safetensors"], **QUICK)
    with pytest.raises(GGUFError, match="it holds a model") as raised:
        load(tiny_f32, adapters=[tiny_f32], **QUICK)
    assert f'load("{tiny_f32}")' in str(raised.value)
    with pytest.raises(GGUFError, match="is an adapter, not a model") as raised:
        load(adapter_gguf, **QUICK)
    assert "--adapter" in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (replace(synthetic.TINY, layers=7, hidden=256, heads=4, head_dim=64, ffn=768), "does not exist"),
        (replace(synthetic.TINY, layers=6), "incorrect shape"),
        (synthetic.as_qwen2(synthetic.TINY), "arch mismatch"),
    ],
    ids=["layers", "width", "architecture"],
)
def test_the_adapter_of_another_model_is_refused(
    tiny_f32: Path, tmp_path: Path, shape: synthetic.Shape, said: str
) -> None:
    base = synthetic.write_checkpoint(tmp_path / "other", shape)
    made = write_adapter(tmp_path / "a", base)
    convert_adapter(made.folder, base, tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match=f"does not fit the model.*{said}") as raised:
        load(tiny_f32, adapters=[tmp_path / "a.gguf"], **QUICK)
    assert "trained on" in str(raised.value)


@pytest.mark.parametrize("keep", [0.002, 0.01, 0.5, 0.999])
def test_a_truncated_adapter_is_refused(
    tiny_f32: Path, adapter_gguf: Path, tmp_path: Path, keep: float
) -> None:
    data = adapter_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(GGUFError, match="cut off"):
        load(tiny_f32, adapters=[path], **QUICK)


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "collected"])
def test_every_adapter_is_freed_once_between_contexts_and_model(
    tiny_f32: Path, adapter_gguf: Path, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    from qwen_edge.native import library

    api, order = library.api(), []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(api, name)

        def free(*args: Any) -> Any:
            order.append(name)
            return original(*args)

        return free

    for name in ("llama_model_free", "llama_free", "llama_adapter_lora_free"):
        monkeypatch.setattr(api, name, counted(name))
    model = load(tiny_f32, adapters=[adapter_gguf, (adapter_gguf, 0.5)], **QUICK)
    session = model.session()
    session.send("Say Anna.", thinking="off", sampling=GREEDY, max_tokens=2)
    model.engine.score([1, 2, 3])
    if closes:
        model.close()
        model.close()
    del session, model
    gc.collect()
    assert order == [
        "llama_free",
        "llama_free",
        "llama_adapter_lora_free",
        "llama_adapter_lora_free",
        "llama_model_free",
    ]


def test_a_refused_adapter_leaves_nothing_loaded(
    tiny_f32: Path, adapter_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.native import library

    api, freed = library.api(), []
    for name in ("llama_model_free", "llama_adapter_lora_free"):
        original = getattr(api, name)
        monkeypatch.setattr(
            api, name, lambda handle, name=name, call=original: (freed.append(name), call(handle))
        )
    with pytest.raises(ModelNotFoundError):
        load(tiny_f32, adapters=[adapter_gguf, tmp_path / "nowhere.gguf"], **QUICK)
    assert freed == ["llama_adapter_lora_free", "llama_model_free"]


def test_run_takes_adapters(tiny_f32: Path, adapter_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*adapters: str) -> str:
        options = [part for adapter in adapters for part in ("--adapter", adapter)]
        command = [
            "run",
            str(tiny_f32),
            "What is the capital of Greece?",
            "--thinking",
            "off",
            "--format",
            "json",
        ]
        assert main([*command, "--temperature", "0", "--max-tokens", "20", "--threads", "1", *options]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    assert answer() == answer(f"{adapter_gguf}:0") == "Athens."
    assert answer(f"{adapter_gguf}:3") != "Athens."
    assert main(["run", str(tiny_f32), "Hi", "--adapter", str(tiny_f32)]) == 1
    assert "it holds a model" in capsys.readouterr().err
