"""GGUF files against the reference forward pass: right ones pass, wrong ones do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_edge.cli.main import main
from qwen_edge.convert import convert_checkpoint, verify_file
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.reference import Reference
from qwen_edge.convert.verification import LIMITS, limits_of
from qwen_edge.errors import CheckpointError, ConfigError, VerificationError
from qwen_edge.gguf_header import padded, read_header
from qwen_edge.quantize import quantize_file
from tests import synthetic
from tests.golden.checkpoints import CHECKPOINTS
from tests.pooled_checkpoints import yes_no_tokenizer

GREEDY = Path(__file__).parents[2] / "golden" / "greedy_tokens.json"


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {"tiny-qwen3": synthetic.TINY_QWEN3}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = CHECKPOINTS[name](tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return make


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["tiny-qwen3", *CHECKPOINTS])
def test_a_conversion_computes_what_its_checkpoint_does(
    name: str, dtype: Any, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    convert_checkpoint(checkpoint_of(name), path, dtype=dtype)
    report = verify_file(path, checkpoint_of(name), n_threads=1)
    assert report.type == dtype.upper()
    assert report.tokens > 200
    assert report.is_within_limits, report
    if dtype == "f32":
        assert report.max_logit_error < 1e-3
        assert report.top1_agreement == 1.0


# Random weights amplify what 4 bits lose far more than trained ones do.
@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("qwen3-untied", "Q8_0"),
        ("qwen2-biased", "Q8_0"),
        *(("tiny-qwen3", type_name) for type_name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")),
    ],
)
def test_a_quantized_file_is_near_its_checkpoint(
    name: str, type_name: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    source, path = tmp_path / "source.gguf", tmp_path / "m.gguf"
    convert_checkpoint(checkpoint_of(name), source, dtype="f32")
    quantize_file(source, path, type_name, n_threads=1)
    report = verify_file(path, checkpoint_of(name), n_threads=1)
    assert report.is_within_limits, report
    assert report.mean_kld > 1e-6, "quantized weights cannot give the same logits"


def _edited(
    folder: Path, target: Path, edit: Callable[[dict[str, np.ndarray], dict[str, Any]], None]
) -> Path:
    """Return a copy of a checkpoint whose tensors and config.json were changed."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    edit(tensors, config)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    return target


def _swap(tensors: dict[str, np.ndarray], left: str, right: str) -> None:
    prefix = "model.layers.1."
    tensors[prefix + left], tensors[prefix + right] = tensors[prefix + right], tensors[prefix + left]


WRONG: dict[str, Callable[[dict[str, np.ndarray], dict[str, Any]], None]] = {
    "rope base": lambda tensors, config: config.update(rope_theta=1000.0),
    "gate for up": lambda tensors, config: _swap(tensors, "mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "q norm for k norm": lambda tensors, config: _swap(
        tensors, "self_attn.q_norm.weight", "self_attn.k_norm.weight"
    ),
    "norm missing": lambda tensors, config: tensors["model.norm.weight"].fill(1.0),
    "rows reversed": lambda tensors, config: tensors.update(
        {"lm_head.weight": tensors["lm_head.weight"][::-1].copy()}
    ),
    "scaled context": lambda tensors, config: config.update(
        rope_scaling={"rope_type": "linear", "factor": 4.0}
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_of_something_else_is_found_out(
    what: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    right = checkpoint_of("qwen3-untied")
    wrong = _edited(right, tmp_path / "wrong", WRONG[what])
    convert_checkpoint(wrong, tmp_path / "m.gguf", dtype="f16")
    report = verify_file(tmp_path / "m.gguf", right, n_threads=1)
    assert not report.is_within_limits, report
    with pytest.raises(VerificationError, match="does not compute what"):
        report.require()


def test_weights_that_are_no_numbers_are_said(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    right = checkpoint_of("qwen3")
    wrong = _edited(
        right, tmp_path / "wrong", lambda tensors, config: tensors["model.norm.weight"].fill(np.nan)
    )
    convert_checkpoint(right, tmp_path / "m.gguf", dtype="f32")
    header = read_header(tmp_path / "m.gguf")
    norm = next(tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    with (tmp_path / "m.gguf").open("rb+") as file:
        file.seek(padded(header.header_bytes) + norm.offset)
        file.write(np.full(norm.n_weights, np.nan, np.float32).tobytes())
    with pytest.raises(VerificationError, match="no numbers"):
        verify_file(tmp_path / "m.gguf", right, n_threads=1)
    with pytest.raises(CheckpointError, match="norm"):
        verify_file(tmp_path / "m.gguf", wrong, n_threads=1)


def test_another_vocabulary_is_refused(checkpoint_of: Callable[[str], Path], tiny_bf16: Path) -> None:
    with pytest.raises(ConfigError, match=r"4096 tokens.*300"):
        verify_file(tiny_bf16, checkpoint_of("qwen3"), n_threads=1)


def test_limits_go_down_with_the_bits() -> None:
    names = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_S", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ1_S", ""]
    limits = [limits_of(name).mean_kld for name in names]
    assert limits == sorted(limits)
    assert limits_of("Q4_0") == LIMITS["Q4_K_M"]


def test_the_reference_generates_what_transformers_does() -> None:
    """The 50 answers of tests/golden/greedy_tokens.json: each token is the likeliest after those before it."""
    entries = json.loads(GREEDY.read_text())["entries"]
    model = Reference(open_checkpoint(synthetic.TINY_QWEN3))
    states = model.hidden_states([entry["prompt_tokens"] + entry["tokens"] for entry in entries])
    n_tokens = 0
    for entry, state in zip(entries, states, strict=True):
        (logits,) = model.head([state[len(entry["prompt_tokens"]) - 1 : -1]])
        for found, expected, gap in zip(logits, entry["tokens"], entry["gaps"], strict=True):
            best = np.sort(found)[-2:]
            assert found.argmax() == expected or gap < 1e-3
            # The golden file has gaps rounded to 5 digits.
            assert abs(float(best[1] - best[0]) - gap) < 1e-3
            n_tokens += 1
    assert (len(entries), n_tokens) == (50, sum(len(entry["tokens"]) for entry in entries))
    assert n_tokens > 800


# Rerankers and embedding models


SHAPE = replace(synthetic.TINY, hidden=64, ffn=96)


def _write(folder: Path, shape: synthetic.Shape = SHAPE) -> Path:
    return synthetic.write_checkpoint(folder, shape, tokenizer=yes_no_tokenizer(), dtype="F32", std=0.2)


def _classifier(n_labels: int) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    def edit(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        generator = np.random.default_rng(7)
        tensors["score.weight"] = generator.normal(0, 0.2, (n_labels, SHAPE.hidden)).astype(np.float32)
        config["architectures"] = ["Qwen3ForSequenceClassification"]
        config["id2label"] = {str(i): f"L{i}" for i in range(n_labels)}

    return edit


@pytest.mark.parametrize("kind", ["tied", "untied", "one label", "two labels"])
def test_a_reranker_gives_the_probability_of_yes(kind: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "Tiny-Qwen3-Reranker", replace(SHAPE, is_tied=kind != "untied"))
    if "label" in kind:
        folder = _edited(folder, tmp_path / "Classifier", _classifier(1 if kind == "one label" else 2))
    path = tmp_path / "m.gguf"
    report = convert_checkpoint(folder, path, dtype="f32")
    assert [tensor.name for tensor in report.dropped] == (["lm_head.weight"] if kind == "untied" else [])
    verified = verify_file(path, folder, n_threads=1)
    assert verified.max_pooled_error is not None
    assert verified.max_pooled_error < 1e-5
    if kind != "untied":
        assert verified.is_within_limits


def test_a_reranker_can_be_told_or_denied(tmp_path: Path) -> None:
    named = _write(tmp_path / "Qwen3-Reranker-Tiny")
    plain = _write(tmp_path / "Plain")
    files = {}
    for folder, reranker in ((named, None), (named, False), (plain, None), (plain, True)):
        path = tmp_path / f"{folder.name}-{reranker}.gguf"
        files[folder.name, reranker] = convert_checkpoint(folder, path, dtype="f32", reranker=reranker)
    counts = {key: report.tensor_count for key, report in files.items()}
    base = counts["Plain", None]
    assert counts == {
        ("Qwen3-Reranker-Tiny", None): base + 1,
        ("Qwen3-Reranker-Tiny", False): base,
        ("Plain", None): base,
        ("Plain", True): base + 1,
    }


def test_an_embedding_model_gives_the_last_state(tmp_path: Path) -> None:
    folder = _write(tmp_path / "Embedding")
    (folder / "1_Pooling").mkdir()
    synthetic.write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    synthetic.write_json(
        folder / "modules.json", [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    )
    convert_checkpoint(folder, tmp_path / "m.gguf", dtype="f32")
    report = verify_file(tmp_path / "m.gguf", folder, n_threads=1)
    assert report.max_pooled_error is not None
    assert report.max_pooled_error < 1e-5
    assert report.is_within_limits


# The command


def test_a_pulled_checkpoint_is_named_by_its_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "models--Qwen--Tiny" / "snapshots" / ("c0" * 20)
    shutil.copytree(synthetic.TINY_QWEN3, snapshot)
    path = tmp_path / "m.gguf"
    assert main(["convert", str(snapshot), "-o", str(path), "--verify"]) == 0
    assert "m.gguf against Tiny: " in capsys.readouterr().err


def test_the_command_reports_and_judges(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    convert_checkpoint(checkpoint_of("qwen3"), path, dtype="bf16")
    arguments = ["verify", str(path), "--threads", "1", "--against"]
    assert main([*arguments, str(checkpoint_of("qwen3"))]) == 0
    shown = capsys.readouterr()
    assert "it computes what the checkpoint does" in shown.out
    assert shown.err == ""
    assert main([*arguments, str(checkpoint_of("qwen3-yarn")), "--format", "json"]) == 1
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["is_within_limits"] is False
    assert document["mean_kld"] > document["limits"]["mean_kld"]
    assert "does not compute what" in shown.err
