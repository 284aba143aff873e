"""What of a bundle has drifted on this machine; native libraries are not called."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import device
from qwen_edge.bundle import applying, checking, record
from qwen_edge.bundle.applying import bundle_at, with_bundle, with_bundled_tuning
from qwen_edge.bundle.checking import check_bundle
from qwen_edge.bundle.golden import golden_digest
from qwen_edge.bundle.record import BundledBuild, BundledSpeed, BundleMachine, read_bundle
from qwen_edge.bundle.report import BundleReport, Finding
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.cli.main import main
from qwen_edge.config import LoadConfig
from qwen_edge.device import AvailableMemory
from qwen_edge.errors import ConfigError, FormatError, NativeError
from qwen_edge.tuned import Settings, Workload
from tests.unit.bundle.conftest import Made
from tests.unit.bundle.test_files import flip
from tests.unit.bundle.test_record import signed

HERE = BundledBuild(engine="llama-cpp-python", version="9.9", key="k", kernels=())
SETTINGS = dataclasses.asdict(Settings(n_threads=1, n_batch=64))
SPEED = {
    "prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0, "prompt_tokens": 256, "depth": 512, "n_sessions": 1,
    "settings": SETTINGS,
}  # fmt: skip
TUNED = {
    "settings": SETTINGS,
    "workload": dataclasses.asdict(Workload(prompt_tokens=16, answer_tokens=8, depth=0)),
    "speeds": {name: {"prefill": 100.0, "decode": 10.0, "turn_s": 1.0} for name in ("default", "tuned")},
    "speculation": "off",
    "speculation_gain": None,
}


def resigned(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change bundle.json, and the sums too: a bundle that was made so."""
    from qwen_edge.bundle.writing import sums_text
    from qwen_edge.files import sha256_file

    signed(folder, change)
    (folder / "SHA256SUMS").write_text(sums_text(read_bundle(folder), sha256_file(folder / "bundle.json")))
    return folder


def of(report: BundleReport, group: str) -> Finding:
    [finding] = [finding for finding in report.findings if finding.group == group]
    return finding


def test_a_bundle_on_the_machine_it_was_made_on(made: Made) -> None:
    report = check_bundle(made.folder)
    assert not report.has_drifted()
    assert [(each.group, each.status) for each in report.findings] == [
        ("files", "ok"), ("build", of(report, "build").status), ("packages", "ok"), ("template", "ok"), ("memory", "ok"), ("speed", "note"),
    ]  # fmt: skip
    assert "not known" in of(report, "speed").text
    assert report.has_drifted(strict=True)


@pytest.mark.parametrize(
    ("made_with", "status", "said"),
    [
        ({}, "ok", "the same build"),
        ({"version": "0.0.1"}, "note", "9.9 here, 0.0.1 where the bundle was made"),
        ({"key": "other"}, "note", "in another build"),
        ({"kernels": ["mine"]}, "note", "in another build"),
    ],
)
def test_builds_are_compared(
    copied: Path, monkeypatch: pytest.MonkeyPatch, made_with: dict[str, Any], status: str, said: str
) -> None:
    monkeypatch.setattr(checking, "build_here", lambda *, is_gguf: HERE)
    resigned(
        copied, lambda data: data.update(build=json.loads(json.dumps(dataclasses.asdict(HERE))) | made_with)
    )
    finding = of(check_bundle(copied), "build")
    assert (finding.status, said in finding.text) == (status, True), finding


def test_without_an_engine_the_command_is_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    none = BundledBuild(engine="llama-cpp-python", version=None, key=None, kernels=())
    monkeypatch.setattr(checking, "build_here", lambda *, is_gguf: none)
    finding = of(check_bundle(made.folder), "build")
    assert finding.status == "drift"
    assert finding.text.endswith("qwen-edge setup")


def test_other_packages_are_notes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "lock_differences", lambda text: ["numpy is 2 here, 1 was bundled"])
    report = check_bundle(made.folder)
    assert (of(report, "packages").status, report.has_drifted()) == ("note", False)


def test_a_device_with_too_little_memory(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def little(n_bytes: int) -> Callable[[], AvailableMemory]:
        return lambda: AvailableMemory(
            available_bytes=n_bytes, total_bytes=n_bytes, limited_by="system", reason="test"
        )

    needed = int(of_bytes(made, monkeypatch, little(1_000)))
    assert needed > 1_000
    monkeypatch.setattr(device, "available_memory_bytes", little(needed))
    assert of(check_bundle(made.folder), "memory").status == "ok"
    monkeypatch.setattr(device, "available_memory_bytes", little(needed - 1))
    finding = of(check_bundle(made.folder), "memory")
    assert finding.status == "drift"
    assert "256 tokens of context do not fit" in finding.text


def of_bytes(made: Made, monkeypatch: pytest.MonkeyPatch, free: Callable[[], AvailableMemory]) -> str:
    monkeypatch.setattr(device, "available_memory_bytes", free)
    return of(check_bundle(made.folder), "memory").expected


def measured(prefill: float, decode: float) -> Callable[..., BundledSpeed]:
    def measure(path: Path, settings: Settings, workload: Workload) -> BundledSpeed:
        assert settings == Settings(**SETTINGS)
        return BundledSpeed(**(SPEED | {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}))

    return measure


@pytest.mark.parametrize(
    ("prefill", "decode", "tolerance", "status"),
    [
        (100, 10, 0.0, "ok"),
        (71, 7.1, 0.3, "ok"),
        (69, 10, 0.3, "drift"),
        (500, 6.9, 0.3, "drift"),
        (1, 0.1, 1.0, "ok"),
    ],
)
def test_speed_is_compared_with_a_tolerance(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefill: float,
    decode: float,
    tolerance: float,
    status: str,
) -> None:
    resigned(copied, lambda data: data.update(speed=SPEED))
    monkeypatch.setattr(checking, "build_here", lambda *, is_gguf: HERE)
    monkeypatch.setattr(checking, "measure_speed", measured(prefill, decode))
    assert of(check_bundle(copied, tolerance=tolerance), "speed").status == status
    skipped = of(check_bundle(copied, measures_speed=False), "speed")
    assert (skipped.status, "not measured now" in skipped.text) == ("note", True)


def test_speed_of_another_machine_is_a_note(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resigned(copied, lambda data: (data.update(speed=SPEED), data["machine"].update(cpu_name="Cortex-A76")))
    monkeypatch.setattr(checking, "measure_speed", lambda *_: pytest.fail("it was measured"))
    finding = of(check_bundle(copied), "speed")
    assert finding.status == "note"
    assert "measured on another machine: 100 tokens/s reading, 10.0 writing on Cortex-A76" in finding.text


def test_a_model_that_does_not_run_has_drifted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> BundledSpeed:
        raise NativeError("it does not run")

    monkeypatch.setattr(checking, "build_here", lambda *, is_gguf: HERE)
    monkeypatch.setattr(checking, "measure_speed", fails)
    resigned(copied, lambda data: data.update(speed=SPEED))
    assert of(check_bundle(copied), "speed").text == "it does not run"
    resigned(copied, lambda data: data["speed"].update(settings={"n_threads": 1, "os": "x"}))
    assert "its settings cannot be" in of(check_bundle(copied), "speed").text
    resigned(copied, lambda data: data["speed"].update(settings={"n_threads": 0}))
    assert "n_threads" in of(check_bundle(copied), "speed").text


def test_a_damaged_model_is_not_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "measure_speed", lambda *_: pytest.fail("it was run"))
    resigned(copied, lambda data: data.update(speed=SPEED))
    flip(copied / "tiny.gguf", 30)
    report = check_bundle(copied)
    assert report.has_drifted()
    assert {finding.group for finding in report.findings} == {"files", "build", "packages"}


def test_a_template_that_renders_otherwise(copied: Path) -> None:
    resigned(copied, lambda data: data["chat"].update(golden_sha256="0" * 64))
    assert "otherwise" in of(check_bundle(copied), "template").text
    resigned(copied, lambda data: data["chat"].update(golden_sha256=None))
    assert of(check_bundle(copied), "template").status == "note"
    resigned(copied, lambda data: data["chat"].update(template=None))
    assert "no chat template" in of(check_bundle(copied), "template").text


def test_a_template_beside_the_model_that_is_not_its_own(copied: Path) -> None:
    path = copied / "chat_template.jinja"
    path.write_bytes(path.read_bytes() + b"\n")
    from qwen_edge.files import sha256_file

    def change(data: dict[str, Any]) -> None:
        [row] = [row for row in data["files"] if row["name"] == path.name]
        row |= {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}

    resigned(copied, change)
    finding = of(check_bundle(copied), "template")
    assert finding.text == "chat_template.jinja is not the template in tiny.gguf"


def test_golden_digests_tell_templates_apart() -> None:
    plain, other = ChatTemplate(""), ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert golden_digest(plain) == golden_digest(ChatTemplate(""))
    assert golden_digest(plain) != golden_digest(other)
    assert golden_digest(ChatTemplate("{{ strftime_now('%d') }}")) is None
    assert golden_digest(ChatTemplate("{{ raise_exception('no') }}")) is not None


def test_loading_takes_the_settings_of_a_bundle(made: Made) -> None:
    bundle = bundle_at(made.folder)
    assert bundle is not None
    assert bundle_at(made.model) is None
    assert with_bundle(bundle, LoadConfig()).n_ctx == 256
    assert with_bundle(bundle, LoadConfig(n_ctx=128)).n_ctx == 128
    assert with_bundle(bundle, LoadConfig(), ["n_ctx"]).n_ctx == LoadConfig().n_ctx
    assert with_bundle(bundle, LoadConfig(n_ctx="auto")).n_ctx == -1  # type: ignore[arg-type]
    mapped = dataclasses.replace(bundle, load=dataclasses.replace(bundle.load, load_mode="mmap", n_threads=3))
    config = with_bundle(mapped, LoadConfig(kv_type="q8_0", flash_attention="on"))
    assert (config.load_mode, config.n_threads, config.kv_type) == ("mmap", 3, "q8_0")
    onnx = dataclasses.replace(mapped, model=dataclasses.replace(bundle.model, format="onnx"))
    assert with_bundle(onnx, LoadConfig()).load_mode == "read"


def test_tuning_is_for_the_machine_that_was_tuned(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(resigned(copied, lambda data: data.update(tuned=TUNED)))
    assert with_bundled_tuning(bundle, LoadConfig()).n_batch == 64
    assert with_bundled_tuning(bundle, LoadConfig(n_batch=32)).n_batch == 32
    assert with_bundled_tuning(bundle, LoadConfig(tuned=False)).n_batch == 512
    assert with_bundled_tuning(bundle, LoadConfig(n_sessions=2)).n_batch == 512
    other = dataclasses.replace(BundleMachine.here(), usable_cores=99)
    monkeypatch.setattr(applying.BundleMachine, "here", classmethod(lambda cls: other))
    assert with_bundled_tuning(bundle, LoadConfig()).n_batch == 512


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"n_threads": -1}},
        {"settings": {"rm": "-rf"}},
        {"settings": SETTINGS | {"n_batch": "many"}},
        {"workload": {"depth": -1}},
        {"speeds": {}},
        {"speeds": {"default": {"turn_s": 1}, "tuned": {"turn_s": 0}}},
        {"speeds": {"default": 1, "tuned": 2}},
    ],
)
def test_tuning_that_cannot_be_is_left_out(copied: Path, change: dict[str, Any]) -> None:
    bundle = read_bundle(resigned(copied, lambda data: data.update(tuned=TUNED | change)))
    config = LoadConfig()
    assert with_bundled_tuning(bundle, config) is config


def test_commands(made: Made, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "b"
    assert main(["bundle", str(made.model), "-o", str(target), "--n-ctx", "64", "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"] == "tiny.gguf"
    assert "No licence is stated" in shown.err
    assert main(["verify-bundle", str(target), "--no-speed"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [
        "files", "build", "packages", "template", "memory", "speed",
    ]  # fmt: skip
    assert "All is well" in shown.err
    assert main(["verify-bundle", str(target), "--no-speed", "--strict"]) == 1
    flip(copied / "README.md", 5)
    capsys.readouterr()
    assert main(["verify-bundle", str(copied), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    [finding] = [each for each in report["findings"] if each["status"] == "drift"]
    assert (report["has_drifted"], finding["file"]) == (True, "README.md")
    assert len(finding["expected"]) == len(finding["found"]) == 64
    assert main(["plan", str(target), "--n-ctx", "64"]) == 0


def test_a_damaged_bundle_says_how_to_look_at_it(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copied / "bundle.json", 40)
    assert main(["run", str(copied), "Hi"]) == 1
    assert "bundle.json is damaged" in capsys.readouterr().err
    assert main(["verify-bundle", str(copied)]) == 1
    assert "bundle.json: it was changed" in capsys.readouterr().out
    with pytest.raises(FormatError):
        bundle_at(copied)


def test_settings_that_contradict_each_other_are_told(made: Made) -> None:
    bundle = read_bundle(made.folder)
    packed = dataclasses.replace(
        bundle, load=record.BundledSettings(n_ctx=64, n_batch=8, n_threads=1, flash_attention="on", kv_type="q8_0", load_mode="read")
    )  # fmt: skip
    with pytest.raises(ConfigError, match="needs flash attention"):
        with_bundle(packed, LoadConfig(), ["flash_attention"])
