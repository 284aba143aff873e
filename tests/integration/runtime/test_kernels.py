"""Our own kernels against those of llama.cpp which they replace, on random and on extreme blocks.

Where the library was built with them, it has both: ours under llama.cpp's name, llama.cpp's as NAME_upstream.
LLAMA_CPP_LIB_PATH chooses another build: one for AVX2 only, one with VNNI.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_edge.native.build_plan import CMAKE_INCLUDE
from qwen_edge.native.builds import chosen_build
from qwen_edge.native.own_kernels import CMAKE_FILE

KINDS = ("plain", "extreme")
ROWS = (256, 512, 1024, 4864, 9728)
# Qwen2.5-0.5B has rows of 896, a KV cache those of one head.
ROWS_OF_32 = (32, 64, 96, 896, *ROWS)

# Fields of one block of weights. Source: ggml-common.h; block<4, 8> and block_q4_Kx8 in ggml-cpu/repack.h.
EIGHT_Q4_0 = [("scale", "<f2", 8), ("levels", "u1", 128)]
EIGHT_Q4_K = [("scale", "<f2", 8), ("minimum", "<f2", 8), ("scales", "u1", 96), ("levels", "u1", 1024)]
Q8_0 = [("scale", "<f2", 1), ("levels", "i1", 32)]
Q5_0 = [("scale", "<f2", 1), ("upper", "u1", 4), ("levels", "u1", 16)]
Q6_K = [("lower", "u1", 128), ("upper", "u1", 64), ("scales", "i1", 16), ("scale", "<f2", 1)]


@pytest.fixture(scope="module")
def cpu_library() -> ctypes.CDLL:
    build = chosen_build()
    found = next(build.library.glob("libggml-cpu.so"), None) if build else None
    if found is None:
        pytest.skip("no libggml-cpu.so")
    library = ctypes.CDLL(str(found))
    if not hasattr(library, "ggml_vec_dot_q8_0_q8_0_upstream"):
        pytest.skip(f"{found} was built without own kernels: qwen-edge setup")
    library.ggml_cpu_init()  # llama.cpp's table of halves
    return library


def _weights(fields: list[tuple[Any, ...]], shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    blocks = np.zeros(shape, np.dtype(fields))
    for name, dtype, *_ in fields:
        size = blocks[name].shape
        if dtype == "<f2":
            # The largest halves, the smallest ones, both zeros.
            edges = np.array([0.0, -0.0, 65504.0, -65504.0, 6e-8, -6e-8], np.float16)
            plain = rng.uniform(0.01, 0.02, size) * rng.choice([-1, 1], size)
            blocks[name] = rng.choice(edges, size) if kind == "extreme" else plain
        else:
            # Both nibbles at their ends, in all combinations; as signed bytes these reach from -128 to 127.
            edges = np.array([0x00, 0xFF, 0x0F, 0xF0, 0x7F, 0x80, 0x88], np.uint8)
            raw = rng.choice(edges, size) if kind == "extreme" else rng.integers(0, 256, size, np.uint8)
            blocks[name] = raw.view(dtype)
    return blocks


def _activations(n: int, block: int, kind: str) -> NDArray[Any]:
    """Return a row of Q8_0 (block of 32) or Q8_K (of 256)."""
    rng = np.random.default_rng(1)
    fields: list[tuple[Any, ...]] = [("scale", "<f2" if block == 32 else "<f4"), ("levels", "i1", block)]
    if block == 256:
        fields.append(("sums", "<i2", 16))
    row = np.zeros(n // block, np.dtype(fields))
    row["scale"] = rng.uniform(0.01, 0.02, n // block)
    size = row["levels"].shape
    row["levels"] = rng.choice([-127, 127], size) if kind == "extreme" else rng.integers(-127, 128, size)
    if kind == "extreme":
        row["levels"][::2] = 127
    if block == 256:
        row["sums"] = row["levels"].reshape(-1, 16, 16).sum(-1)
    return row


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _product(
    library: ctypes.CDLL, function: str, n: int, weights: NDArray[Any], activations: NDArray[Any]
) -> bytes:
    """Return float32 [rows] of weights [rows / 8, n / block] as bytes."""
    n_rows = 8 * len(weights)
    # One more group of rows than is asked for: it must stay as it is.
    out = np.full(n_rows + 8, 7, np.float32)
    call = getattr(library, function)
    call(n, _pointer(out), ctypes.c_size_t(n_rows), _pointer(weights), _pointer(activations), 1, n_rows)
    assert (out[n_rows:] == 7).all()
    return out[:n_rows].tobytes()


def _dot(library: ctypes.CDLL, function: str, n: int, row: NDArray[Any], activations: NDArray[Any]) -> float:
    out, unused = np.full(2, 7, np.float32), ctypes.c_size_t(0)
    call = getattr(library, function)
    call(n, _pointer(out), unused, _pointer(row), unused, _pointer(activations), unused, 1)
    assert out[1] == 7
    return float(out[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "block", "fields"),
    [
        ("ggml_gemv_q4_0_8x8_q8_0", 32, EIGHT_Q4_0),
        ("ggml_gemv_iq4_nl_8x8_q8_0", 32, EIGHT_Q4_0),
        ("ggml_gemv_q4_K_8x8_q8_K", 256, EIGHT_Q4_K),
    ],
)
def test_products_with_repacked_weights_are_those_of_llama_cpp_bit_for_bit(
    cpu_library: ctypes.CDLL, name: str, block: int, fields: list[tuple[Any, ...]], kind: str
) -> None:
    for n in ROWS_OF_32 if block == 32 else ROWS:
        activations = _activations(n, block, kind)
        for n_groups in (1, 2, 3, 9):
            weights = _weights(fields, (n_groups, n // block), kind)
            whole = _product(cpu_library, name, n, weights, activations)
            assert whole == _product(cpu_library, f"{name}_upstream", n, weights, activations), (n, n_groups)
            # Threads take slices of the rows.
            slices = [
                _product(cpu_library, name, n, part, activations) for part in (weights[:1], weights[1:])
            ]
            assert whole == b"".join(slices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "block", "fields"),
    [
        ("ggml_vec_dot_q8_0_q8_0", 32, Q8_0),
        ("ggml_vec_dot_q5_0_q8_0", 32, Q5_0),
        ("ggml_vec_dot_q6_K_q8_K", 256, Q6_K),
    ],
)
def test_dot_products_are_those_of_llama_cpp_bit_for_bit(
    cpu_library: ctypes.CDLL, name: str, block: int, fields: list[tuple[Any, ...]], kind: str
) -> None:
    for n in ROWS_OF_32 if block == 32 else ROWS:
        activations = _activations(n, block, kind)
        for row in _weights(fields, (20, n // block), kind):
            ours = _dot(cpu_library, name, n, row, activations)
            assert ours == _dot(cpu_library, f"{name}_upstream", n, row, activations), n


GEMV_ARGUMENTS = "int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy, int nr, int nc"


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Return a function that configures a stand-in for llama-cpp-python; it gives CMake's words and the facts."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")

    def run(signature: str, kernels_file: Path | None) -> tuple[str, dict[str, Any]]:
        source = tmp_path / "source" / "vendor"
        (source / "ggml-cpu" / "arch" / "x86").mkdir(parents=True)
        names = ("ggml_gemv_q4_0_8x8_q8_0", "ggml_gemv_q4_K_8x8_q8_K", "ggml_gemv_iq4_nl_8x8_q8_0")
        (source / "ggml-cpu" / "arch" / "x86" / "repack.cpp").write_text(
            "\n".join(f"\nvoid {name}({signature}) {{\n}}" for name in names)
        )
        (source / "CMakeLists.txt").write_text("add_library(ggml-cpu STATIC ggml-cpu/arch/x86/repack.cpp)\n")
        (source.parent / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.21)\nproject(llama_cpp CXX)\nadd_subdirectory(vendor)\n"
            # After the kernels' own call, for calls are made in their order.
            "cmake_language(DEFER CALL show)\n"
            "function(show)\n"
            "  get_property(sources TARGET ggml-cpu PROPERTY SOURCES)\n"
            "  get_property(renamed SOURCE vendor/ggml-cpu/arch/x86/repack.cpp TARGET_DIRECTORY ggml-cpu"
            " PROPERTY COMPILE_DEFINITIONS)\n"
            '  message(STATUS "sources: ${sources}; renamed: ${renamed}")\n'
            "endfunction()\n"
        )
        include, facts = tmp_path / "include.cmake", tmp_path / "facts.json"
        include.write_text(CMAKE_INCLUDE)
        facts.write_text('{"key": "k"}\n')
        options = {"CMAKE_PROJECT_llama_cpp_INCLUDE": include, "QWEN_EDGE_BUILD_FACTS": facts}
        options |= {"SKBUILD_PLATLIB_DIR": tmp_path / "lib"}
        options |= {"QWEN_EDGE_KERNELS_FILE": kernels_file} if kernels_file else {}
        done = subprocess.run(
            ["cmake", "-S", str(source.parent), "-B", str(tmp_path / "objects"), "-Wno-dev"]
            + [f"-D{name}={value}" for name, value in options.items()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(facts.read_text())

    return run


Configure = Callable[..., tuple[str, dict[str, Any]]]


def test_kernels_come_in_for_the_functions_that_they_replace(configure: Configure) -> None:
    said, facts = configure(GEMV_ARGUMENTS, CMAKE_FILE)
    if "none for this target" in said:
        pytest.skip("not x86-64")
    assert facts == {
        "key": "k",
        "kernels": "ggml_gemv_q4_0_8x8_q8_0 ggml_gemv_q4_K_8x8_q8_K ggml_gemv_iq4_nl_8x8_q8_0",
    }
    assert "x86_gemv.cpp" in said.partition("sources:")[2]
    assert "ggml_gemv_q4_K_8x8_q8_K=ggml_gemv_q4_K_8x8_q8_K_upstream" in said
    assert "x86_dot.cpp left out" in said, "this llama.cpp has no arch/x86/quants.c"


def test_a_build_goes_on_without_kernels_where_llama_cpp_is_another(configure: Configure) -> None:
    said, facts = configure(GEMV_ARGUMENTS.replace("int nr", "int64_t nr"), CMAKE_FILE)
    assert "kernels" not in facts
    assert "x86_gemv.cpp" not in said.partition("sources:")[2]
    assert "left out" in said or "none for this target" in said


def test_without_the_kernels_file_llama_cpp_is_as_it_comes(configure: Configure) -> None:
    said, facts = configure(GEMV_ARGUMENTS, None)
    assert facts == {"key": "k"}
    assert "qwen-edge kernels" not in said
    assert "_upstream" not in said
