"""What the files of a library tell of how it was built."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge.native.library_file import compiler_of, has_amx_kernels, has_library


def library(folder: Path, data: bytes) -> Path:
    (folder / "libggml-cpu.so").write_bytes(b"\x7fELF" + bytes(100) + data + bytes(100))
    (folder / "libllama.so").write_bytes(b"\x7fELF")
    return folder


@pytest.mark.parametrize(
    ("comment", "family", "version"),
    [
        (b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0", "gcc", (12, 2, 0)),
        (b"\0GCC: (GNU) 14.1.1\0", "gcc", (14, 1, 1)),
        (b"\0Debian clang version 16.0.6\0", "clang", (16, 0, 6)),
    ],
)
def test_compilers_sign_what_they_make(
    tmp_path: Path, comment: bytes, family: str, version: tuple[int, ...]
) -> None:
    compiler = compiler_of(library(tmp_path, comment))
    assert compiler is not None
    assert (compiler.family, compiler.version) == (family, version)


def test_amx_kernels_are_found_by_their_entry(tmp_path: Path) -> None:
    assert has_amx_kernels(library(tmp_path, b"_Z28ggml_backend_amx_buffer_typev\0")) is True
    assert has_amx_kernels(library(tmp_path, b"ggml_cpu_has_amx_int8\0")) is False


def test_a_folder_without_a_library_tells_nothing(tmp_path: Path) -> None:
    assert not has_library(tmp_path)
    assert compiler_of(tmp_path) is None
    assert has_amx_kernels(tmp_path) is None
    (tmp_path / "libggml-cpu.so").touch()  # an empty file cannot be mapped
    assert has_amx_kernels(tmp_path) is None
    assert not has_library(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["libllama.so", "libllama.so.0", "libllama.dylib", "llama.dll"])
def test_libraries_of_every_system(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert has_library(tmp_path)
