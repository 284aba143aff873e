"""Damage to any file of a bundle is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.bundle.file_checks import check_files
from qwen_edge.bundle.sections import (
    Section,
    copy_hashed,
    damaged_sections,
    read_sections,
    sections_of,
    sections_to_json,
)
from qwen_edge.errors import FormatError
from qwen_edge.gguf_header import padded, read_header
from tests.unit.bundle.conftest import Made


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("rb+") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_whole_bundle_is_well(made: Made) -> None:
    bundle, [finding] = check_files(made.folder)
    assert bundle == made.bundle
    assert (finding.status, finding.group) == ("ok", "files")
    assert finding.text.startswith(f"{len(list(made.folder.iterdir()))} files, ")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_reads_the_sums(made: Made, copied: Path) -> None:
    subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=made.folder, check=True, capture_output=True
    )
    flip(copied / "README.md", 3)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=copied, capture_output=True, text=True)
    assert done.returncode == 1
    assert "README.md: FAILED" in done.stdout


@pytest.fixture(scope="session")
def flipped(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, in which one bit at a time is turned and turned back."""
    return shutil.copytree(made.folder, tmp_path_factory.mktemp("flipped") / "b")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_named(made: Made, flipped: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in made.folder.iterdir())))
    position = data.draw(st.integers(0, (made.folder / name).stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    flip(flipped / name, position, bit)
    try:
        _, findings = check_files(flipped)
    finally:
        flip(flipped / name, position, bit)
    assert {finding.file for finding in findings} == {name}
    assert all(finding.status == "drift" for finding in findings)
    assert name in findings[0].text
    if name == "tiny.gguf":
        header = read_header(made.model)
        start = padded(header.header_bytes)
        inside = [
            t.name
            for t in header.tensors
            if start + t.offset <= position < start + padded(t.offset + t.n_bytes)
        ]
        where = f"tensor {inside[0]}," if inside else "header,"
        assert findings[-1].text.startswith(f"in tiny.gguf: {where}"), findings


@pytest.mark.parametrize("name", ["tiny.gguf", "bundle.json", "SHA256SUMS", "tokenizer.json", "tensors.json"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    if name == "bundle.json":
        with pytest.raises(FileNotFoundError, match="is no bundle"):
            check_files(copied)
        return
    _, findings = check_files(copied)
    assert [finding.file for finding in findings] == [name]
    assert "missing" in findings[0].text


@pytest.mark.parametrize("name", ["tiny.gguf", "README.md", "SHA256SUMS", "bundle.json", "tensors.json"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_file_that_is_cut_off_is_named_with_its_length(copied: Path, name: str, left: int) -> None:
    path = copied / name
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:left])
    _, findings = check_files(copied)
    assert {finding.file for finding in findings} == {name}
    if name not in ("SHA256SUMS", "bundle.json"):
        assert f"{left} bytes (expected {whole:,})" in findings[0].text


def test_bytes_behind_the_end_are_named(copied: Path) -> None:
    with (copied / "tiny.gguf").open("ab") as file:
        file.write(b"more")
    _, findings = check_files(copied)
    assert findings[-1].text == "in tiny.gguf: bytes behind its end were added"


def test_files_that_do_not_belong_are_named(copied: Path) -> None:
    (copied / "adapter.gguf").write_bytes(b"x")
    (copied / "sub").mkdir()
    _, findings = check_files(copied)
    assert [finding.file for finding in findings] == ["adapter.gguf", "sub"]
    assert all("no part of the bundle" in finding.text for finding in findings)


def test_a_link_in_place_of_a_file_is_named(copied: Path, made: Made) -> None:
    (copied / "README.md").unlink()
    (copied / "README.md").symlink_to(made.folder / "README.md")
    (copied / "LICENSE").unlink()
    (copied / "LICENSE").mkdir()
    _, findings = check_files(copied)
    assert [(f.file, "a link" in f.text) for f in findings] == [("LICENSE", False), ("README.md", True)]


def test_a_damaged_record_leaves_the_other_files_to_the_sums(copied: Path) -> None:
    flip(copied / "bundle.json", 1)
    flip(copied / "tiny.gguf", (copied / "tiny.gguf").stat().st_size - 40)
    bundle, findings = check_files(copied)
    assert bundle is None
    assert [finding.file for finding in findings] == ["bundle.json", "tiny.gguf", "tiny.gguf"]
    assert "tensor " in findings[-1].text


def test_names_in_hostile_sums_lead_nowhere(copied: Path) -> None:
    (copied / "bundle.json").write_text("{}")
    (copied / "SHA256SUMS").write_text(f"{'0' * 64}  ../outside\n")
    _, findings = check_files(copied)
    assert {finding.file for finding in findings} >= {"bundle.json", "SHA256SUMS"}
    assert not [finding for finding in findings if "outside" in finding.text]


def test_sections_are_the_whole_file(made: Made) -> None:
    sections = read_sections(made.folder / "tensors.json")
    assert [section.name for section in sections_of(read_header(made.model))] == [
        each.name for each in sections
    ]
    assert sections[0].start == 0
    ends = [section.start + section.size_bytes for section in sections]
    assert ends == [*(section.start for section in sections[1:]), made.model.stat().st_size]
    assert damaged_sections(made.model, sections) == ()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), cuts=st.lists(st.integers(1, 199), max_size=4))
def test_a_hashed_copy_is_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    (folder / "a").write_bytes(content)
    starts = sorted({0, *(cut for cut in cuts if cut < len(content))})
    sections = tuple(
        Section(f"s{start}", start, end - start)
        for start, end in zip(starts, [*starts[1:], len(content)], strict=True)
    )
    _, hashed = copy_hashed(folder / "a", folder / "b", sections)
    assert (folder / "b").read_bytes() == content
    assert damaged_sections(folder / "b", hashed) == ()
    (folder / "json").write_text(sections_to_json(hashed))
    assert read_sections(folder / "json") == hashed


@pytest.mark.parametrize("change", [b"", b"1234"])
def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "a").write_bytes(change)
    with pytest.raises(FormatError, match="changed while it was copied"):
        copy_hashed(tmp_path / "a", tmp_path / "b", (Section("s", 0, 3),))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["a", 0, 1]]', '[["a", -1, 1, "x"]]', "7", "[" * 10_000])
def test_damaged_sections_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tensors.json").write_text(text)
    with pytest.raises(FormatError, match="damaged"):
        read_sections(tmp_path / "tensors.json")
