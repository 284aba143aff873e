from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from qwen_edge.convert import OnnxPrecision, export_onnx
from qwen_edge.convert.onnx_levels import KINDS, choose_levels
from qwen_edge.errors import ConfigError
from qwen_edge.files import sha256_file

TINY = Path(__file__).parents[3] / "examples" / "tiny-qwen3"
TEXTS = [
    (TINY / "eval" / "prose.txt").read_text(encoding="utf-8")[start : start + 400] for start in (0, 4000)
]


def levels(folder: Path) -> dict[str, int]:
    """Return the accuracy level of each matrix by the kind of matrix, checking that a kind has one."""
    found: dict[str, set[int]] = {}
    for node in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node:
        values = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            kind = node.name.removesuffix("/MatMulNBits").rsplit("/", 1)[-1]
            found.setdefault(kind, set()).add(values["accuracy_level"])
    assert all(len(each) == 1 for each in found.values())
    return {kind: each.pop() for kind, each in found.items()}


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    return export_onnx(TINY, tmp_path / "int4", precision=OnnxPrecision(weights="int4")).path


def test_fast_levels_stay_where_few_tokens_change(int4: Path) -> None:
    choice = choose_levels(int4, TEXTS, max_flipped=0.2, n_threads=1)
    assert choice.chosen == choice.trials[0]
    assert choice.chosen.exact == ()
    assert 0 < choice.chosen.mean_kld < 0.01
    assert levels(int4) == dict.fromkeys(KINDS, 4)


def test_matrices_become_exact_until_no_token_changes(int4: Path) -> None:
    choice = choose_levels(int4, TEXTS, max_flipped=0.0, n_threads=1)
    assert choice.chosen.flips == 0
    assert levels(int4) == {kind: 0 if kind in choice.chosen.exact else 4 for kind in KINDS}
    assert all(trial.mean_kld <= choice.trials[0].mean_kld * 1.5 for trial in choice.trials)
    settings = json.loads((int4 / "manifest.json").read_text(encoding="utf-8"))["settings"]
    assert settings["precision"]["exact"] == list(choice.chosen.exact)
    digests = {each["name"]: each["sha256"] for each in settings["files"]}
    assert digests["model.onnx"] == sha256_file(int4 / "model.onnx")
    assert not [path for path in int4.parent.iterdir() if path != int4], "no trial is left behind"


def test_what_has_no_levels_is_refused(tmp_path: Path) -> None:
    folder = export_onnx(TINY, tmp_path / "int8", precision=OnnxPrecision(weights="int8")).path
    with pytest.raises(ConfigError, match="no int4 matrix"):
        choose_levels(folder, TEXTS)
    with pytest.raises(ConfigError, match="at least one text"):
        choose_levels(folder, [])
