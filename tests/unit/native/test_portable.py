"""Wheels for ARM machines: what is written into them and how they are taken, without compiling one."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.main import main
from qwen_edge.errors import NativeError
from qwen_edge.native import builds, portable
from qwen_edge.native.build_plan import pinned_version
from qwen_edge.native.cpu_modules import ARM_MODULES

LIBRARY = b"\x7fELF...\0GLIBC_2.17\0GLIBC_2.34\0GLIBCXX_3.4.29\0GLIBC_2.4\0"
FACTS: dict[str, Any] = {
    "key": "0123456789abcdef",
    "version": pinned_version(),
    "target": "linux-aarch64",
    "modules": {name: list(needs) for name, needs in ARM_MODULES.items()},
}


def compiled_wheel(folder: Path) -> Path:
    """Return a wheel as pip makes it on an x86 machine."""
    wheel = folder / f"llama_cpp_python-{pinned_version()}-py3-none-linux_x86_64.whl"
    info = f"llama_cpp_python-{pinned_version()}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llama_cpp/llama_cpp.py", "")
        archive.writestr("llama_cpp/qwen_edge_build.json", "{}")
        for name in ("libllama.so", "libllama.so.0", "libllama.so.0.5.0", "libggml-cpu-armv8.0_1.so"):
            archive.writestr(f"llama_cpp/lib/{name}", LIBRARY)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-linux_x86_64\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_EDGE_NATIVE", str(tmp_path / "native"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.setattr(builds, "_used", None)
    monkeypatch.setattr(portable, "this_target", lambda: "linux-aarch64-glibc2.36")
    monkeypatch.setattr(builds, "_machine", lambda: (frozenset({"asimd"}), "linux-aarch64-glibc2.36"))
    (tmp_path / "out").mkdir()
    return portable.finish_wheel(compiled_wheel(tmp_path), tmp_path / "out", FACTS)


def test_the_wheel_is_named_after_what_it_needs(wheel: Path) -> None:
    assert wheel.name == f"llama_cpp_python-{pinned_version()}-py3-none-manylinux_2_34_aarch64.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        facts = json.loads(archive.read("llama_cpp/qwen_edge_build.json"))
        described = archive.read(next(name for name in names if name.endswith("/WHEEL"))).decode()
        record = archive.read(next(name for name in names if name.endswith("/RECORD"))).decode()
        assert facts["target"] == "linux-aarch64-glibc2.34"
        assert "Tag: py3-none-manylinux_2_34_aarch64" in described
        assert "llama_cpp/lib/libllama.so.0.5.0" not in names, "a third copy of the same file"
        rows = list(csv.reader(io.StringIO(record)))
        assert [row[0] for row in rows] == names
        for name, digest, size in rows:
            if not name.endswith("/RECORD"):
                data = archive.read(name)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={wanted}", str(len(data)))


def test_the_same_build_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = portable.finish_wheel(compiled_wheel(tmp_path), tmp_path / "again", FACTS)
    assert again.read_bytes() == wheel.read_bytes()


def test_it_is_taken_and_found(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "--wheel", str(wheel), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["origin"], facts["key"]) == ("setup", FACTS["key"])
    found = builds.chosen_build()
    assert found is not None
    assert found.modules == ARM_MODULES
    assert found.library == builds.builds_folder() / FACTS["key"] / "llama_cpp" / "lib"
    assert main(["setup", "--wheel", str(wheel)]) == 0, "a second time it is replaced"
    assert [path.name for path in builds.builds_folder().glob("installing-*")] == []


def test_a_build_for_this_very_cpu_comes_first(wheel: Path) -> None:
    portable.install_wheel(wheel, say=print)
    native = builds.builds_folder() / "fedcba9876543210"
    (native / "llama_cpp").mkdir(parents=True)
    record = {**FACTS, "key": native.name, "cpu_features": ["asimd"], "package_bytes": 0}
    record["target"] = "linux-aarch64-glibc2.36"
    (native / "build.json").write_text(json.dumps(record))
    found = builds.chosen_build()
    assert found is not None
    assert found.key == native.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.1"}, "is llama-cpp-python 0.1"),
        (
            {"target": "linux-aarch64-glibc2.99"},
            "is for linux-aarch64-glibc2.99, this is linux-aarch64-glibc2.36",
        ),
        ({"target": "linux-x86_64-glibc2.17"}, "is for linux-x86_64"),
        ({"key": "../../etc"}, "is no wheel of qwen-edge setup"),
    ],
)
def test_what_does_not_fit_is_refused(wheel: Path, change: dict[str, str], said: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(contents["llama_cpp/qwen_edge_build.json"])
    contents["llama_cpp/qwen_edge_build.json"] = json.dumps({**facts, **change}).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with pytest.raises(NativeError, match=said) as caught:
        portable.install_wheel(wheel, say=print)
    assert caught.value.hint
    assert not (builds.builds_folder() / "etc").exists()


def test_a_truncated_or_missing_wheel_leaves_nothing(wheel: Path) -> None:
    data = wheel.read_bytes()
    wheel.write_bytes(data[: len(data) // 2])
    with pytest.raises(NativeError, match="damaged"):
        portable.install_wheel(wheel, say=print)
    wheel.unlink()
    with pytest.raises(NativeError, match="is not there"):
        portable.install_wheel(wheel, say=print)
    assert not builds.builds_folder().exists() or not list(builds.builds_folder().glob("*/llama_cpp"))


def test_damage_inside_is_found(wheel: Path) -> None:
    data = bytearray(wheel.read_bytes())
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo("llama_cpp/lib/libllama.so")
    data[info.header_offset + 60] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(NativeError, match="damaged"):
        portable.install_wheel(wheel, say=print)
    assert not list(builds.builds_folder().glob("*/llama_cpp"))


def test_libraries_that_need_no_known_c_library_are_refused() -> None:
    with pytest.raises(NativeError, match="which C library"):
        portable.needed_glibc([b"\x7fELF"])


def test_without_a_compiler_for_arm_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable.build_needs, "check_tools", lambda: None)
    with pytest.raises(NativeError, match="no C\\+\\+ compiler for aarch64") as caught:
        portable.plan_portable({"PATH": "/nowhere"})
    assert "apt-get install g++-aarch64-linux-gnu" in str(caught.value.hint)


@pytest.mark.parametrize(
    "arguments",
    [["--for", "aarch64"], ["-o", "dist"], ["--wheel", "a.whl", "--force"], ["--for", "armv7", "-o", "dist"]],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    assert main(["setup", *arguments]) == 2
