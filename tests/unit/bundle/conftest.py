"""A small model as a GGUF file with its checkpoint, and a bundle of it; random weights, nothing runs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))  # for tests.synthetic

from qwen_edge.bundle.record import Bundle
from qwen_edge.bundle.writing import BundleRequest, make_bundle
from qwen_edge.config import LoadConfig
from qwen_edge.convert import convert_checkpoint
from tests import synthetic


@dataclass(frozen=True)
class Made:
    """What one test session shares; the files are not to be changed."""

    checkpoint: Path
    model: Path
    folder: Path
    bundle: Bundle


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle with all that one can have."""
    here = tmp_path_factory.mktemp("made")
    checkpoint = synthetic.write_checkpoint(here / "ckpt")
    (checkpoint / "LICENSE").write_text("Do what you like.\n")
    model = here / "tiny.gguf"
    convert_checkpoint(checkpoint, model, dtype="bf16")
    request = BundleRequest(load=LoadConfig(n_ctx=256), checkpoint=checkpoint)
    bundle = make_bundle(model, here / "tiny-bundle", request)
    return Made(checkpoint, model, here / "tiny-bundle", bundle)


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A copy of the bundle, for tests that damage it."""
    return shutil.copytree(made.folder, tmp_path / "copied")
