"""Which kernels of a portable build are loaded, without an ARM machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import ConfigError, NativeError
from qwen_edge.native import cpu_modules
from qwen_edge.native.cpu_modules import ARM_MODULES, best_module, list_modules, load_module

FEATURES = sorted({need for needs in ARM_MODULES.values() for need in needs})


class Bindings:
    """Stands for llama.cpp's: notes what is loaded."""

    def __init__(self, answer: int = 1) -> None:
        self.loaded: list[bytes] = []
        self._answer = answer
        self._lib = SimpleNamespace(
            ggml_backend_load=self._function(), ggml_backend_load_all_from_path=self._function()
        )

    def _function(self) -> Any:
        def load(path: bytes) -> int:
            self.loaded.append(path)
            return self._answer

        return load


def folder_of(path: Path, *levels: str) -> Path:
    for level in levels:
        (path / f"libggml-cpu-{level}.so").touch()
    return path


@pytest.mark.parametrize(
    ("features", "level"),
    [
        (("asimd",), "armv8.0_1"),  # Cortex-A53, A72
        (("asimd", "asimddp", "asimdhp", "fphp"), "armv8.2_2"),  # Cortex-A55, A76
        (("asimddp", "asimdhp", "i8mm", "bf16"), "armv8.6_0"),  # Cortex-A710 with SVE off, Oryon
        (("asimddp", "asimdhp", "i8mm", "sve"), "armv8.6_1"),  # Neoverse V1
        (("asimddp", "asimdhp", "i8mm", "sve", "sve2", "sme"), "armv8.6_2"),  # Neoverse V2
    ],
)
def test_the_best_level_for_known_cores(features: tuple[str, ...], level: str) -> None:
    assert best_module(ARM_MODULES, features) == level


@given(st.sets(st.sampled_from(FEATURES)))
def test_no_level_needs_what_is_not_there(features: set[str]) -> None:
    level = best_module(ARM_MODULES, features)
    assert level is not None
    assert set(ARM_MODULES[level]) <= features
    # None that fits needs more of what is there.
    better = [needs for needs in ARM_MODULES.values() if set(needs) <= features]
    assert not any(set(needs) > set(ARM_MODULES[level]) for needs in better)


def test_a_build_with_one_set_of_kernels_loads_nothing(tmp_path: Path) -> None:
    bindings = Bindings()
    (tmp_path / "libggml-cpu.so").touch()
    assert load_module(bindings, tmp_path, {}, ()) is None  # type: ignore[arg-type]
    assert bindings.loaded == []


def test_the_level_is_loaded_by_its_path(tmp_path: Path) -> None:
    bindings, folder = Bindings(), folder_of(tmp_path, *ARM_MODULES)
    assert load_module(bindings, folder, ARM_MODULES, ("asimddp",)) == "armv8.2_1"  # type: ignore[arg-type]
    assert bindings.loaded == [str(tmp_path / "libggml-cpu-armv8.2_1.so").encode()]


def test_a_level_whose_file_is_missing_is_not_chosen(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "armv8.0_1")
    assert load_module(Bindings(), folder, ARM_MODULES, ("asimddp",)) == "armv8.0_1"  # type: ignore[arg-type]
    (tmp_path / "libggml-cpu-armv8.0_1.so").rename(tmp_path / "libggml-cpu-armv8.6_2.so")
    with pytest.raises(OSError, match=r"kernels for armv8\.6_2 only"):
        load_module(Bindings(), folder, ARM_MODULES, ("asimddp",))  # type: ignore[arg-type]


def test_a_library_of_other_origin_chooses_in_its_own_folder(tmp_path: Path) -> None:
    bindings = Bindings()
    folder = folder_of(tmp_path, "haswell", "zen4")
    assert load_module(bindings, folder, {}, ("avx2",)) is None  # type: ignore[arg-type]
    assert bindings.loaded == [str(tmp_path).encode()]


def test_another_level_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, *ARM_MODULES)
    monkeypatch.setenv(cpu_modules.VARIABLE, "armv8.0_1")
    assert load_module(Bindings(), folder, ARM_MODULES, FEATURES) == "armv8.0_1"  # type: ignore[arg-type]
    monkeypatch.setenv(cpu_modules.VARIABLE, "armv7")
    with pytest.raises(ConfigError, match="armv7"):
        load_module(Bindings(), folder, ARM_MODULES, FEATURES)  # type: ignore[arg-type]


def test_a_module_that_does_not_load_says_why(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "armv8.0_1")
    with pytest.raises(OSError, match="too short"):
        load_module(Bindings(answer=0), folder, ARM_MODULES, ())  # type: ignore[arg-type]


def test_levels_are_put_into_the_list_once(tmp_path: Path) -> None:
    file = tmp_path / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
    file.parent.mkdir(parents=True)
    file.write_text(
        "if (LINUX)\n"
        "            ggml_add_cpu_backend_variant(armv8.0_1)\n"
        "            ggml_add_cpu_backend_variant(armv9.2_2    DOTPROD SME)\n"
        "elseif (ANDROID)\n"
        "            ggml_add_cpu_backend_variant(android_armv8.0_1)\n"
    )
    list_modules(tmp_path, ARM_MODULES)
    text = file.read_text()
    assert "SME" not in text
    assert "variant(armv8.6_0 DOTPROD FP16_VECTOR_ARITHMETIC MATMUL_INT8)\n" in text
    assert text.count("(armv") == len(ARM_MODULES)
    assert text.endswith("elseif (ANDROID)\n            ggml_add_cpu_backend_variant(android_armv8.0_1)\n")
    before = file.stat().st_mtime_ns
    list_modules(tmp_path, ARM_MODULES)
    assert file.stat().st_mtime_ns == before, "a build that goes on must not begin anew"


def test_a_llama_cpp_without_the_list_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
    file.parent.mkdir(parents=True)
    file.write_text("project(ggml)\n")
    with pytest.raises(NativeError, match="lists no levels"):
        list_modules(tmp_path, ARM_MODULES)
