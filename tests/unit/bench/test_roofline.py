"""What a roofline counts, which turns it takes, and how it goes on; a stand-in takes the measuring child's place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qwen_edge.bench import roofline
from qwen_edge.bench.roofline_record import RooflineRecord, RooflineRow, RooflineTurn, file_cost
from qwen_edge.catalog import MODELS, Shape
from qwen_edge.errors import NoSpaceError
from qwen_edge.gguf_header import read_header
from qwen_edge.native.speed_trial import Trial, Turn
from qwen_edge.tensor_plan import plan_tensors
from qwen_edge.trial_model import write_trial_outline

SHAPE = Shape(
    n_layers=2,
    hidden_size=256,
    ffn_size=512,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    vocab_size=320,
    is_tied=True,
    has_qk_norm=True,
)
SETTINGS = {"depth": 9, "n_decode": 3}


def outline(folder: Path, shape: Shape, type_name: str) -> Path:
    path = folder / f"{type_name}.gguf"
    write_trial_outline(path, shape, type_name)
    return path


@pytest.mark.parametrize("is_tied", [True, False])
def test_decode_reads_all_but_an_embedding_that_is_no_head(tmp_path: Path, is_tied: bool) -> None:
    shape = replace(SHAPE, is_tied=is_tied)
    cost = file_cost(read_header(outline(tmp_path, shape, "Q4_0")), frozenset())
    tensors = {tensor.name: tensor.n_bytes for tensor in plan_tensors(shape, "Q4_0")}
    if not is_tied:
        del tensors["token_embd.weight"]
    assert cost.read_bytes == sum(tensors.values())
    assert cost.kv_bytes_per_token == shape.kv_bytes_per_token()
    row = RooflineRow(model="m", type_name="Q4_0", cost=cost)
    # Behind 9 tokens, three are decoded: with 10, 11 and 12 in the cache.
    assert row.bytes_per_token(SETTINGS) == cost.read_bytes + 11 * cost.kv_bytes_per_token


def test_what_is_repacked_is_told_as_a_share(tmp_path: Path) -> None:
    header = read_header(outline(tmp_path, SHAPE, "Q4_0"))
    assert file_cost(header, frozenset()).repacked_share == 0
    # All but the head, which is Q6_K, and the vectors.
    repacked = sum(t.n_bytes for t in header.tensors if t.type_name == "Q4_0")
    assert file_cost(header, frozenset({"avx2"})).repacked_share == repacked / header.tensor_bytes
    assert file_cost(header, frozenset({"amx"})).repacked_share > 0.9


def test_the_share_of_the_limit_is_of_medians(tmp_path: Path) -> None:
    cost = file_cost(read_header(outline(tmp_path, SHAPE, "Q8_0")), frozenset())
    row = RooflineRow(model="m", type_name="Q8_0", cost=cost)
    for speed in (1.0, 50.0, 40.0):
        turn = RooflineTurn(prefill_tokens_per_s=9, decode_tokens_per_s=speed, bandwidth_bytes_per_s=1e9)
        row.turns.append(turn)
    assert row.decode_share(SETTINGS) == 40 * row.bytes_per_token(SETTINGS) / 1e9
    assert row.to_dict(SETTINGS)["decode_tokens_per_s"] == 40


class Machine:
    """Measures nothing; says which file was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.fingerprint = "one"
        monkeypatch.setattr(roofline, "run_turn", self.run_turn)
        monkeypatch.setattr(roofline, "measure_passes", self.measure_passes)
        monkeypatch.setattr(roofline, "write_trial_model", self.write)
        monkeypatch.setattr(roofline, "build_kernels", lambda: frozenset({"avx2"}))
        monkeypatch.setattr(roofline.library, "library_fingerprint", lambda: self.fingerprint)
        for name in ("qwen3-0.6b", "qwen3-1.7b"):
            monkeypatch.setitem(MODELS, name, replace(MODELS[name], shape=SHAPE))

    def write(self, path: Path, shape: Shape, type_name: str, *, architecture: str) -> None:
        if type_name == "F16":
            raise NoSpaceError("the disk is full")
        write_trial_outline(path, shape, type_name, architecture=architecture)  # type: ignore[arg-type]
        self.folder = path.parent

    def measure_passes(self, n_bytes: int, n_threads: int) -> float:
        return 1e9

    def run_turn(self, path: Path, trial: Trial, *, timeout_s: float) -> tuple[Turn | None, str]:
        types = {tensor.name: tensor.type_name for tensor in read_header(path).tensors}
        type_name = types["blk.1.ffn_up.weight"]
        self.asked.append(type_name)
        if type_name in self.failing:
            return None, "signal SIGILL"
        speed = float(len(self.asked))
        return Turn(prefill_tokens_per_s=10 * speed, decode_tokens_per_s=speed, system_info="AVX2 = 1"), ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run(*args: str) -> Result:
    return CliRunner().invoke(roofline.main, ["--n-threads", "2", *args])


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_files_take_turns_and_none_is_left(machine: Machine) -> None:
    found = document(run("--types", "Q4_0,q8_0", "--turns", "3", "--format", "json"))
    assert machine.asked == ["Q4_0", "Q8_0"] * 3
    assert not machine.folder.exists()
    assert found["schema"] == "qwen-edge/roofline/1"
    assert [(row["model"], row["type"]) for row in found["rows"]] == [
        ("qwen3-0.6b", "Q4_0"),
        ("qwen3-0.6b", "Q8_0"),
    ]
    assert [row["decode_tokens_per_s"] for row in found["rows"]] == [3, 4]
    assert found["settings"]["n_threads"] == 2
    assert found["build"]["kernels"] == ["avx2"]
    assert found["system_info"] == "AVX2 = 1"


def test_a_run_goes_on_where_it_was_ended(machine: Machine, tmp_path: Path) -> None:
    options = ["--types", "Q4_0,Q8_0", "--save", str(tmp_path / "r.json"), "--format", "json"]
    document(run(*options, "--turns", "1"))
    more = document(run("--model", "qwen3-1.7b", *options, "--turns", "2"))
    assert machine.asked == ["Q4_0", "Q8_0"] * 3
    assert [len(row["turns"]) for row in more["rows"]] == [1, 1, 2, 2]
    last = document(run(*options, "--turns", "2"))
    assert machine.asked == ["Q4_0", "Q8_0"] * 4
    assert json.loads((tmp_path / "r.json").read_text()) == last
    document(run(*options, "--turns", "2"))
    assert len(machine.asked) == 8, "nothing is missing"


def test_figures_of_another_build_or_setting_are_not_mixed(machine: Machine, tmp_path: Path) -> None:
    options = ["--types", "Q4_0", "--turns", "1", "--save", str(tmp_path / "r.json")]
    assert run(*options).exit_code == 0
    machine.fingerprint = "two"
    refused = run(*options)
    assert refused.exit_code == 1
    assert "with another build" in refused.output
    assert "with another build and settings" in run(*options, "--depth", "7").output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": [], "machine": 1}'])
def test_what_is_no_record_is_refused(machine: Machine, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    refused = run("--save", str(tmp_path / "r.json"))
    assert refused.exit_code == 1
    assert "is no record of a roofline" in refused.output
    assert (tmp_path / "r.json").read_text() == text


def test_without_time_nothing_is_begun(machine: Machine) -> None:
    result = run("--types", "Q4_0", "--budget", "0")
    assert machine.asked == []
    assert "5 turns are missing" in result.output


def test_a_file_that_gives_no_figure_does_not_hold_the_others_up(machine: Machine) -> None:
    machine.failing = {"Q8_0"}
    result = run("--types", "Q8_0,F16,Q4_0", "--turns", "2")
    assert machine.asked == ["Q8_0", "Q4_0", "Q4_0"]
    assert "no figure: signal SIGILL" in result.output
    assert "no figure: the disk is full" in result.output
    assert "4 turns are missing" in result.output
    assert "Q4_0" in result.stdout
    assert "Q8_0" not in result.stdout


def test_a_given_file_is_measured_and_kept(machine: Machine, tmp_path: Path) -> None:
    path = outline(tmp_path, SHAPE, "Q8_0")
    found = document(run("--file", str(path), "--turns", "1", "--format", "json"))
    assert [(row["model"], row["type"]) for row in found["rows"]] == [(str(path), "Q8_0")]
    assert path.exists()


def test_the_table_says_what_the_figures_were_taken_with(machine: Machine, tmp_path: Path) -> None:
    options = ["--save", str(tmp_path / "r.json"), "--types"]
    run(*options, "Q4_0", "--turns", "2")
    lines = run(*options, "Q4_0,Q8_0", "--turns", "1").stdout.splitlines()
    assert [line.split()[:2] for line in lines if "qwen3" in line] == [
        ["qwen3-0.6b", "Q4_0"],
        ["qwen3-0.6b", "Q8_0"],
    ]
    assert max(map(len, lines[:-4])) <= 80
    said = "\n".join(lines)
    assert "prefill of 128 and decode of 32 tokens behind 0, flash attention off, medians of 1 to 2" in said
    assert "the limit: 2 threads read 1.0 GB/s" in said
    assert "kernels for avx2" in said


def test_what_cannot_be_asked_for(machine: Machine) -> None:
    assert "unknown quantization type 'Q9'" in run("--types", "Q9").output
    assert "is not known" in run("--model", "gemma-3-1b").output
    assert run("--model", "no-such-model").exit_code == 1


def test_all_types_are_all(machine: Machine) -> None:
    found = document(run("--types", "all", "--turns", "1", "--format", "json"))
    assert len(found["rows"]) == 34
    assert len(machine.asked) == 33  # F16 finds no room here


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    record = RooflineRecord(machine={"cpu": "x"}, build={"key": "y"}, settings=SETTINGS, system_info="z")
    row = record.row("m", "Q4_0")
    record.row("m", "Q8_0")
    row.cost = file_cost(read_header(outline(tmp_path, SHAPE, "Q4_0")), frozenset())
    row.turns.append(RooflineTurn(prefill_tokens_per_s=1, decode_tokens_per_s=2, bandwidth_bytes_per_s=3))
    record.save(tmp_path / "r.json")
    again = RooflineRecord(machine={"cpu": "x"}, build={"key": "y"}, settings=SETTINGS)
    again.take_up(tmp_path / "r.json")
    assert again == record
