"""Which build serves where: the folders here hold facts and empty files, no library."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import NativeMissingError
from qwen_edge.native import builds, library
from qwen_edge.native.build_plan import pinned_version

TARGET = "linux-x86_64-glibc2.36"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put this test on a machine with AVX2 that has no build; return its folder of builds."""
    monkeypatch.setenv("QWEN_EDGE_NATIVE", str(tmp_path / "native"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.setattr(builds, "_machine", lambda: (frozenset({"avx", "avx2"}), TARGET))
    monkeypatch.setattr(builds, "_used", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    return tmp_path / "native"


def _make(folder: Path, key: str, /, *features: str, age_s: int = 0, **changes: Any) -> Path:
    """Make an entry as `qwen-edge setup` leaves it; return its package folder."""
    package = folder / key / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "llama_cpp.py").write_text("# bindings\n")
    (package / "lib" / "libllama.so").write_bytes(b"library")
    record = {
        "key": key,
        "version": pinned_version(),
        "cpu_features": list(features),
        "flags": "-DGGML_NATIVE=ON",
        "compiler": "c++ 12.2",
        "target": TARGET,
        "package_bytes": builds.folder_bytes(package),
    }
    file = folder / key / "build.json"
    file.write_text(json.dumps({**record, **changes}))
    os.utime(file, (1e9 - age_s, 1e9 - age_s))
    return package


def _install(path: Path, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Path:
    """Make an environment's llama-cpp-python; return its package folder."""
    package = path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "llama_cpp.py").write_text(
        "from llama_cpp._ctypes_extensions import NAME\n_base_path = 'lib'\n"
    )
    (package / "_ctypes_extensions.py").write_text("NAME = 'extensions'\n")
    if facts:
        (package / builds.FACTS_FILE).write_text(json.dumps(facts))
    monkeypatch.delitem(sys.modules, "llama_cpp")
    monkeypatch.syspath_prepend(str(path))
    return package


def _keys() -> list[str | None]:
    return [build.key for build in builds.find_builds()]


def _reasons() -> dict[str | None, str]:
    return {entry.build.key: entry.reason for entry in builds.unfit_builds()}


def test_without_any_build_there_is_none() -> None:
    assert builds.find_builds() == builds.unfit_builds() == ()
    assert builds.chosen_build() is None
    assert library.library_folder() is None
    assert library.library_fingerprint() == ""
    assert library.build_facts()["version"] is None


def test_the_facts_of_a_build_are_those_of_its_record(folder: Path) -> None:
    package = _make(folder, "a", "avx", "avx2")
    assert builds.chosen_build() == builds.Build(
        origin="setup",
        package=package,
        library=package / "lib",
        version=pinned_version(),
        key="a",
        cpu_features=("avx", "avx2"),
        flags="-DGGML_NATIVE=ON",
        compiler="c++ 12.2",
        target=TARGET,
    )
    assert library.build_facts() == {
        "package": "llama-cpp-python",
        "version": pinned_version(),
        "flags": "-DGGML_NATIVE=ON",
        "compiler": "c++ 12.2",
        "key": "a",
    }
    assert library.library_folder() == package / "lib"
    assert len(library.library_fingerprint()) == 16


def test_the_kernels_of_a_build_are_those_that_cmake_told(folder: Path) -> None:
    record = _make(folder, "a", "avx2").parent / "build.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "kernels": "ggml_a ggml_b"}))
    assert [build.kernels for build in builds.find_builds()] == [("ggml_a", "ggml_b")]
    assert library.build_facts()["kernels"] == ["ggml_a", "ggml_b"]


def test_most_features_come_first_then_the_newest(folder: Path) -> None:
    _make(folder, "few", "avx")
    _make(folder, "old", "avx", "avx2", age_s=200)
    _make(folder, "new", "avx", "avx2", age_s=100)
    assert _keys() == ["new", "old", "few"]


def test_a_build_of_another_machine_is_not_used(folder: Path) -> None:
    _make(folder, "larger", "avx", "avx2", "avx512f", "amx_tile")
    _make(folder, "newer", target="linux-x86_64-glibc2.41")
    _make(folder, "musl", target="linux-x86_64")
    _make(folder, "arm", target="linux-aarch64-glibc2.36")
    _make(folder, "version", version="0.1.0")
    _make(folder, "older", "avx", target="linux-x86_64-glibc2.9")
    assert _keys() == ["older"]
    assert _reasons() == {
        "larger": "built for amx_tile, avx512f, which this CPU lacks",
        "newer": "built for linux-x86_64-glibc2.41, this is linux-x86_64-glibc2.36",
        "musl": "built for linux-x86_64, this is linux-x86_64-glibc2.36",
        "arm": "built for linux-aarch64-glibc2.36, this is linux-x86_64-glibc2.36",
        "version": f"of llama-cpp-python 0.1.0, this qwen-edge calls {pinned_version()}",
    }


def test_a_damaged_entry_is_not_used(folder: Path) -> None:
    package = _make(folder, "a", "avx")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "llama_cpp.pyc").write_bytes(b"made by Python")
    assert _keys() == ["a"]
    (package / "lib" / "libllama.so").write_bytes(b"lib")
    assert _reasons() == {"a": "incomplete: files are missing or cut off"}


@pytest.mark.parametrize(
    "record", ["", "[]", "{", '{"key": "other"}', '{"key": "a", "cpu_features": 3}', "\ud800"]
)
def test_a_record_that_says_nothing_usable_is_no_build(folder: Path, record: str) -> None:
    package = _make(folder, "a", "avx")
    (package.parent / "build.json").write_bytes(record.encode("utf-8", "surrogatepass"))
    assert _keys() == []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ("key", "version", "cpu_features", "flags", "compiler", "target", "package_bytes")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON), st.text(max_size=20))
def test_no_record_stops_the_search(folder: Path, changes: dict[str, Any], target: str) -> None:
    if (folder / "a").exists():
        shutil.rmtree(folder / "a")
    _make(folder, "a", "avx", **{"target": target, **changes})
    assert len(builds.find_builds()) + len(builds.unfit_builds()) <= 1


def test_an_entry_with_a_wheel_only_waits_for_setup(folder: Path) -> None:
    package = _make(folder, "a", "avx")
    for file in [*package.rglob("*.*")]:
        file.unlink()
    (package / "lib").rmdir()
    package.rmdir()
    assert builds.find_builds() == builds.unfit_builds() == ()


def test_the_environments_package_is_last_and_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = _install(tmp_path / "site", monkeypatch)
    own = builds.chosen_build()
    assert own is not None
    assert (own.origin, own.package, own.key, own.cpu_features) == ("environment", installed, None, ())
    _make(folder, "a", "avx")
    assert [build.origin for build in builds.find_builds()] == ["setup", "environment"]
    assert "llama_cpp" not in sys.modules


def test_the_environments_package_is_held_to_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path / "site", monkeypatch, key="k", cpu_features=["amx_tile"], target=TARGET)
    assert builds.chosen_build() is None
    assert _reasons() == {"k": "built for amx_tile, which this CPU lacks"}


def test_a_library_that_the_user_names_comes_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "mine" / "lib"))
    assert builds.chosen_build() is None, "no bindings"
    with pytest.raises(NativeMissingError, match="is a library without the Python bindings"):
        library.api.__wrapped__()
    package = _make(folder, "a", "avx")
    named = builds.chosen_build()
    assert named is not None
    assert (named.origin, named.package) == ("LLAMA_CPP_LIB_PATH", package)
    assert (named.library, named.key, named.flags) == (tmp_path / "mine" / "lib", None, None)


def test_a_program_that_imported_llama_cpp_keeps_its_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(folder, "a", "avx")
    module = ModuleType("llama_cpp.llama_cpp")
    module.__file__ = str(tmp_path / "theirs" / "llama_cpp" / "llama_cpp.py")
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", module)
    chosen = builds.chosen_build()
    assert chosen is not None
    assert chosen.library == tmp_path / "theirs" / "llama_cpp" / "lib"


def test_what_is_used_stays(folder: Path) -> None:
    _make(folder, "a", "avx")
    first = builds.chosen_build()
    builds.use(first)
    _make(folder, "b", "avx", "avx2")
    assert builds.chosen_build() is first
    builds.use(None)
    assert builds.chosen_build() != first


def test_without_a_build_it_is_said_what_to_run(folder: Path) -> None:
    _make(folder, "a", "amx_tile")
    with pytest.raises(NativeMissingError) as caught:
        library.api.__wrapped__()
    text = str(caught.value)
    assert "is built for amx_tile, which this CPU lacks" in text
    assert text.index("qwen-edge setup") < text.index('pip install "qwen-edge[onnx]"')


def test_a_library_that_does_not_load_says_where_it_is(folder: Path) -> None:
    package = _make(folder, "a", "avx")
    (package / "llama_cpp.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')\n")
    builds_record = package.parent / "build.json"
    record = json.loads(builds_record.read_text())
    builds_record.write_text(json.dumps({**record, "package_bytes": builds.folder_bytes(package)}))
    with pytest.raises(NativeMissingError, match=r"(?s)libgomp.so.1: cannot open.*qwen-edge setup --force"):
        library.api.__wrapped__()
    assert "llama_cpp.llama_cpp" not in sys.modules


def test_the_bindings_are_imported_alone_and_the_names_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path / "site", monkeypatch)
    build = builds.chosen_build()
    assert build is not None
    bindings = library._import_bindings(build)
    assert bindings.NAME == "extensions"
    assert not [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]
    assert isinstance(importlib.machinery.PathFinder.find_spec("llama_cpp"), importlib.machinery.ModuleSpec)


@pytest.mark.parametrize("named", [None, "", "/mine"])
def test_the_bindings_load_the_library_of_their_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    package = _install(tmp_path / "site", monkeypatch)
    (package / "llama_cpp.py").write_text("import os\nSEEN = os.environ.get('LLAMA_CPP_LIB_PATH')\n")
    own = builds.chosen_build()
    assert own is not None
    if named is not None:
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", named)
    chosen = builds.chosen_build()
    assert chosen is not None
    seen = library._import_bindings(chosen).SEEN
    assert seen == (named or None)
    assert library._import_bindings(own).SEEN is None, "another build that was asked for"
    assert os.environ.get("LLAMA_CPP_LIB_PATH") == named


def test_a_child_uses_what_its_parent_uses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.native import child

    _make(folder, "a", "avx")
    builds.use(builds.chosen_build())
    package = _make(folder, "b", "avx", "avx2")
    (tmp_path / "asked.py").write_text(
        "from qwen_edge.native import builds\nprint(builds.chosen_build().key)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _output_of(child.start_child("asked", [])) == "a\n"
    other = builds.entry_build(package.parent)
    assert _output_of(child.start_child("asked", [], build=other)) == "b\n"


def _output_of(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return output


@pytest.mark.parametrize(
    ("built_for", "here", "fits"),
    [
        ("linux-x86_64-glibc2.9", "linux-x86_64-glibc2.36", True),
        ("linux-x86_64-glibc2.36", "linux-x86_64-glibc2.36", True),
        ("linux-x86_64-glibc2.37", "linux-x86_64-glibc2.36", False),
        ("linux-x86_64", "linux-x86_64", True),
        ("macosx-11.0-arm64", "macosx-11.0-arm64", True),
        ("macosx-14.0-arm64", "macosx-11.0-arm64", False),
        ("linux-aarch64-glibc2.36", "linux-x86_64-glibc2.36", False),
    ],
)
def test_a_newer_c_library_runs_what_an_older_one_was_built_for(
    built_for: str, here: str, fits: bool
) -> None:
    assert builds.target_fits(built_for, here) == fits
