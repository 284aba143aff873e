"""Which files are wanted, what names mean, and what is here already."""

from __future__ import annotations

import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from hub_server import Hub
from huggingface_hub import constants

from qwen_edge import hub
from qwen_edge.cli.main import main
from qwen_edge.errors import ConfigError, DownloadError, ModelNotFoundError, UnsupportedError
from qwen_edge.hub.listing import (
    Listing,
    RemoteFile,
    by_type,
    checkpoint_files,
    gguf_file,
    preferred,
    require_safe,
    split_count,
    type_in_name,
)
from qwen_edge.hub.offers import find_offers, parse_request
from qwen_edge.hub.web import Patience
from qwen_edge.quant_types import FILE_TYPES

CHECKPOINT = "Qwen/Qwen3-0.6B"


def listing(*names: str) -> Listing:
    files = tuple(RemoteFile(name=name, url="", size_bytes=1, sha256="0" * 64) for name in names)
    return Listing(kind="huggingface", location="o/r", revision="0" * 40, licence="", files=files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("Qwen3-4B-Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
        ("BF16/Qwen3-4B-BF16.gguf", "BF16"),
        ("gemma-3-1b-it.Q4_K.gguf", "Q4_K_M"),
        ("Qwen3-0.6B-UD-Q4_K_XL.gguf", None),
        ("Qwen3-0.6B.gguf", None),
        ("Q8_0.gguf", "Q8_0"),
    ],
)
def test_the_type_in_a_name(name: str, expected: str | None) -> None:
    assert type_in_name(name) == expected


@hypothesis.given(
    stem=st.text(st.characters(codec="ascii", exclude_characters="/"), max_size=20),
    kind=st.sampled_from(sorted(FILE_TYPES)),
    separator=st.sampled_from("-._"),
    upper=st.booleans(),
)
def test_every_type_is_found_behind_any_name(stem: str, kind: str, separator: str, upper: bool) -> None:
    name = f"{stem}{separator}{kind if upper else kind.lower()}.gguf"
    assert type_in_name(name) == kind
    assert by_type([name]) == {kind: name}


@hypothesis.given(st.text(max_size=60))
def test_any_name_has_a_type_or_none(name: str) -> None:
    assert type_in_name(name) in {None, *FILE_TYPES}
    assert split_count(name) >= 0


def test_a_file_is_chosen_by_type() -> None:
    offered = listing("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "README.md", "mmproj-F16.gguf")
    assert gguf_file(offered, None).name == gguf_file(offered, "Q4_K_M").name == "m-Q4_K_M.gguf"
    assert gguf_file(offered, "Q8_0").name == "m-Q8_0.gguf"
    assert gguf_file(listing("m.gguf"), None).name == "m.gguf"
    with pytest.raises(ModelNotFoundError, match="no F16") as raised:
        gguf_file(offered, "F16")
    assert "Q4_K_M, Q8_0" in str(raised.value.hint)
    with pytest.raises(ModelNotFoundError, match="no GGUF file") as raised:
        gguf_file(listing("model.safetensors"), "Q8_0")
    assert "qwen-edge pull o/r" in str(raised.value.hint)
    with pytest.raises(ModelNotFoundError, match="neither safetensors nor GGUF"):
        gguf_file(listing("pytorch_model.bin"), None)


def test_parts_are_named_and_refused() -> None:
    offered = listing("m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf", "m-Q8_0.gguf")
    with pytest.raises(UnsupportedError, match="BF16 in several parts"):
        gguf_file(offered, "BF16")
    assert gguf_file(offered, None).name == "m-Q8_0.gguf"
    with pytest.raises(ModelNotFoundError, match="known type") as raised:
        gguf_file(listing("m-BF16-00001-of-00002.gguf"), None)
    assert "In several parts: BF16" in str(raised.value.hint)


def test_preferred_types() -> None:
    assert preferred(["F16", "Q8_0", "Q4_K_M"]) == "Q4_K_M"
    assert preferred(["Q2_K", "IQ1_S"]) == "IQ1_S"
    assert preferred([]) is None


def test_a_checkpoint_has_no_other_formats() -> None:
    names = (
        "a.safetensors",
        "config.json",
        "README.md",
        "x/a.safetensors",
        "pytorch_model.bin",
        "a.gguf",
        "run.py",
    )
    assert {file.name for file in checkpoint_files(listing(*names))} == {
        "a.safetensors",
        "config.json",
        "README.md",
    }
    with pytest.raises(UnsupportedError, match="no safetensors"):
        checkpoint_files(listing("pytorch_model.bin"))


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../../b", "a\\b", "C:x", "a//b", "./a", "a\0"]
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="lists a file named"):
        require_safe(RemoteFile(name=name, url="", sha256="0" * 64), "o/r")


@pytest.mark.parametrize(
    "digests", [{}, {"sha256": "0" * 63}, {"git_sha1": "../" * 13 + "a"}, {"git_sha1": "0" * 40}]
)
def test_files_that_cannot_be_checked_are_refused(digests: dict[str, str]) -> None:
    with pytest.raises(DownloadError, match="states no"):
        require_safe(RemoteFile(name="a", url="", **digests), "o/r")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("qwen3-0.6b", "auto", ["huggingface Qwen/Qwen3-0.6B", "modelscope Qwen/Qwen3-0.6B"]),
        ("qwen3-0.6b", "modelscope", ["modelscope Qwen/Qwen3-0.6B"]),
        ("qwen3-0.6b", "wheels", []),
        ("qwen3-0.6b@q8_0", "auto", ["huggingface Qwen/Qwen3-0.6B-GGUF", "modelscope Qwen/Qwen3-0.6B-GGUF"]),
        ("Qwen/Qwen3-0.6B-GGUF:Q8_0", "huggingface", ["huggingface Qwen/Qwen3-0.6B-GGUF"]),
        ("Qwen/Qwen3-0.6B-GGUF", "huggingface", ["huggingface Qwen/Qwen3-0.6B-GGUF"]),
        ("qwen2.5-coder-0.5b", "wheels", ["wheels "]),
        ("qwen2.5-coder-0.5b@q4_k_m", "wheels", ["wheels "]),
        ("qwen2.5-coder-0.5b@q8_0", "wheels", []),
        ("someone/else", "auto", ["huggingface someone/else"]),
        ("someone/else", "modelscope", ["modelscope someone/else"]),
        ("https://huggingface.co/someone/else", "auto", ["huggingface someone/else"]),
    ],
)
def test_where_a_model_may_be_had(name: str, source: hub.Source, expected: list[str]) -> None:
    asked = parse_request(name)
    assert asked is not None
    assert [f"{offer.kind} {offer.location}" for offer in find_offers(asked, source)] == expected


def test_what_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_request("https://github.com/o/r/releases/download/v1/m.gguf") is None
    assert parse_request("https://huggingface.co/o/r/resolve/main/m.gguf") is None
    assert parse_request("http://example.org/m.gguf") is None
    with pytest.raises(ModelNotFoundError, match="is no model"):
        parse_request("./m.gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-0.6b").mkdir()  # as `qwen-edge convert` makes names like it
    assert parse_request("qwen3-0.6b") is not None
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match="is here already"):
        parse_request("./m.gguf")


def test_a_file_is_located_by_type(hub_server: Hub, patience: Patience) -> None:
    with pytest.raises(ModelNotFoundError, match="not on this machine") as raised:
        hub.locate("org/tiny-GGUF@q8_0")
    assert "qwen-edge pull org/tiny-GGUF@Q8_0" in str(raised.value.hint)
    first = hub.pull("org/tiny-GGUF@q8_0", patience=patience).path
    assert hub.locate("org/tiny-GGUF") == hub.locate("org/tiny-GGUF@Q8_0") == first
    second = hub.pull("org/tiny-GGUF@q4_0", source="modelscope", patience=patience).path
    with pytest.warns(
        UserWarning, match=r"is here as Q4_0, Q8_0; taking Q4_0\. Name it with org/tiny-GGUF@Q4_0"
    ):
        assert hub.locate("org/tiny-GGUF") == second
    with pytest.raises(ModelNotFoundError, match="as Q6_K is not on this machine") as raised:
        hub.locate("org/tiny-GGUF@q6_k")
    assert "Here: Q4_0, Q8_0." in str(raised.value.hint)


def test_locating_asks_nobody(hub_server: Hub) -> None:
    for find in (hub.locate, hub.locate_checkpoint):
        with pytest.raises(ModelNotFoundError, match="not on this machine") as raised:
            find("qwen3-0.6b")
        assert "qwen-edge pull qwen3-0.6b" in str(raised.value.hint)
        assert find("x/y/z.gguf") == Path("x/y/z.gguf")
    with pytest.raises(ModelNotFoundError, match="neither a file nor a known model"):
        hub.locate("qwen9")
    with pytest.raises(ConfigError, match="a checkpoint has none"):
        hub.locate_checkpoint("qwen3-0.6b@q8_0")
    assert hub_server.requests == []


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json"])
def test_a_checkpoint_that_is_not_whole_is_not_here(
    hub_server: Hub, patience: Patience, source: hub.Source, name: str
) -> None:
    folder = hub.pull("qwen3-0.6b", source=source, patience=patience).path
    assert hub.locate_checkpoint("qwen3-0.6b") == folder
    (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        hub.locate_checkpoint("qwen3-0.6b")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_convert_takes_the_name_of_what_was_pulled(
    hub_server: Hub,
    tmp_path: Path,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = Path(__file__).parents[3] / "examples" / "tiny-qwen3"
    shutil.rmtree(hub_server.folder / CHECKPOINT)
    shutil.copytree(tiny, hub_server.folder / CHECKPOINT, ignore=shutil.ignore_patterns("eval"))
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "qwen3-0.6b"]) == 1
    assert "qwen-edge pull qwen3-0.6b" in capsys.readouterr().err
    assert main(["pull", "qwen3-0.6b", "--source", source]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["convert", "qwen3-0.6b"]) == 0
    assert (tmp_path / "Qwen3-0.6B-bf16.gguf").is_file()
