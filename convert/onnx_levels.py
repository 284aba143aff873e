"""Which matrices of an int4 model may take their inputs in 8 bits: those where it leaves the most likely token alone.

MatMulNBits is several times faster when it rounds its inputs to 8 bits (accuracy level 4). That moves logits, and now and
then the most likely token. Here the same texts go through the model with no matrix at level 4, with all, and with one
kind of matrix after the other kept exact, until few enough tokens change.

Source of the problem: onnxruntime issue 29849.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig
from qwen_edge.convert.onnx_genai import GENAI_MODEL_NAME
from qwen_edge.convert.onnx_precision import OnnxPrecision
from qwen_edge.engines.onnx import OnnxEngine
from qwen_edge.engines.onnx_folder import GRAPH_NAME
from qwen_edge.errors import ConfigError, MissingExtraError
from qwen_edge.files import atomic_path
from qwen_edge.logits import compare_logits
from qwen_edge.manifest import FileRecord, read_manifest, write_manifest

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "choosing accuracy levels") from error

# Kinds of matrices, by the end of their path.
KINDS = ("lm_head", "down_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj")
_MAX_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelTrial:
    """One choice of levels, compared with no matrix at level 4.

    Attributes:
        exact: Kinds of matrices kept exact.
        tokens: Predictions compared.
        flips: Of those the ones with another most likely token.
        mean_kld: Mean KL divergence from the exact model, in nats.
    """

    exact: tuple[str, ...]
    tokens: int
    flips: int
    mean_kld: float

    @property
    def flipped(self) -> float:
        """Share of flips, 0 to 1."""
        return self.flips / self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelChoice:
    """What choose_levels() tried and took.

    Attributes:
        trials: In the order of trying; the first has all matrices at level 4.
        chosen: The one whose levels the model has now.
    """

    trials: tuple[LevelTrial, ...]
    chosen: LevelTrial


def choose_levels(
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    max_flipped: float = 0.01,
    n_threads: int | None = None,
) -> LevelChoice:
    """Set the accuracy levels of an exported folder: fast ones where they keep the most likely token.

    Starts with all matrices fast. While more than `max_flipped` of the tokens change, the kind of matrix is made exact
    that helps most. 8-bit matrices have one level and stay as they are.

    Args:
        folder: What export_onnx() made, with int4 weights.
        texts: To compare on; the first 256 tokens of each. Not those that the model is judged by afterwards.
        max_flipped: Share of predictions that may change, 0 to 1. Tokens of nearly equal logits change with any
            rounding: 0 leaves few models anything but exact.
        n_threads: CPU threads; None takes those usable.

    Raises:
        ConfigError: Nothing in it is int4, there are no texts, or the share is out of range.
        MissingExtraError: onnxruntime is not installed.
        FormatError, OSError: It cannot be read or written.
    """
    folder = Path(folder)
    if not texts or not 0 <= max_flipped <= 1:
        raise ConfigError(
            f"levels are chosen on at least one text, for a share in 0..1 (not {max_flipped!r})"
        )
    model = onnx.load(str(folder / GRAPH_NAME), load_external_data=False)
    present = tuple(kind for kind in KINDS if any(_is_kind(node, kind) for node in model.graph.node))
    if not present:
        raise ConfigError(
            f"{folder} has no int4 matrix: there are no levels to choose",
            hint="Export it with --weights int4.",
        )
    trial = _Trials(folder, model, texts, n_threads)
    trials = [trial(())]
    best = trials[0]
    while best.flipped > max_flipped and len(best.exact) < len(present):
        left = [kind for kind in present if kind not in best.exact]
        tried = [trial((*best.exact, kind)) for kind in left]
        trials += tried
        best = min(tried, key=lambda each: (each.flips, each.mean_kld))
    set_levels(model, best.exact)
    _write(folder, model, best.exact)
    return LevelChoice(trials=tuple(trials), chosen=best)


def set_levels(model: onnx.ModelProto, exact: Sequence[str]) -> None:
    """Give each 4-bit matrix level 0 when its path ends with one of `exact`, else 4."""
    precision = OnnxPrecision(weights="int4", exact=tuple(exact))
    for node in model.graph.node:
        values = _attributes(node)
        if values.get("bits") == 4:
            path = node.name.removesuffix("/MatMulNBits")
            next(each for each in node.attribute if each.name == "accuracy_level").i = precision.level_of(
                path, 4
            )


class _Trials:
    """Runs the texts through the model with other levels."""

    def __init__(
        self, folder: Path, model: onnx.ModelProto, texts: Sequence[str], n_threads: int | None
    ) -> None:
        self._folder, self._model, self._texts, self._n_threads = folder, model, texts, n_threads
        self._exact = self._logits(KINDS)

    def __call__(self, exact: tuple[str, ...]) -> LevelTrial:
        klds: list[NDArray[np.float64]] = []
        same: list[NDArray[np.bool_]] = []
        for reference, logits in zip(self._exact, self._logits(exact), strict=True):
            comparison = compare_logits(reference, logits, np.zeros(len(logits), np.int64))
            klds.append(comparison.kld)
            same.append(comparison.same_top)
        same_top = np.concatenate(same)
        return LevelTrial(
            exact=exact,
            tokens=len(same_top),
            flips=int((~same_top).sum()),
            mean_kld=float(np.concatenate(klds).mean()),
        )

    def _logits(self, exact: Sequence[str]) -> list[NDArray[np.float32]]:
        set_levels(self._model, exact)
        with _variant(self._folder, self._model) as folder:
            engine = OnnxEngine(folder, LoadConfig(n_ctx=_MAX_TOKENS, n_threads=self._n_threads))
            try:
                return [engine.score(engine.tokenize(text)[:_MAX_TOKENS]) for text in self._texts]
            finally:
                engine.close()


@contextmanager
def _variant(folder: Path, model: onnx.ModelProto) -> Iterator[Path]:
    """Yield a folder with another graph over the same weights."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.levels.", dir=folder.parent) as name:
        part = Path(name)
        for path in folder.iterdir():
            if path.name == GRAPH_NAME:
                continue
            try:
                os.link(path, part / path.name)
            except OSError:  # a file system without links
                shutil.copyfile(path, part / path.name)
        (part / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))
        yield part


def _write(folder: Path, model: onnx.ModelProto, exact: Sequence[str]) -> None:
    """Replace the graph, and the one for onnxruntime-genai, and say so in the manifest."""
    changed = [GRAPH_NAME]
    with atomic_path(folder / GRAPH_NAME) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
    if (folder / GENAI_MODEL_NAME).is_file():
        changed.append(GENAI_MODEL_NAME)
        other = onnx.load(str(folder / GENAI_MODEL_NAME), load_external_data=False)
        set_levels(other, exact)
        with atomic_path(folder / GENAI_MODEL_NAME) as part:
            part.write_bytes(other.SerializeToString(deterministic=True))
    manifest = read_manifest(folder)
    if manifest is None:
        return
    records = {name: asdict(FileRecord.of(folder / name)) for name in changed}
    settings = dict(manifest.settings)
    settings["precision"] = {**settings.get("precision", {}), "exact": list(exact)}
    settings["files"] = [records.get(each["name"], each) for each in settings.get("files", [])]
    write_manifest(folder, replace(manifest, settings=settings))


def _is_kind(node: onnx.NodeProto, kind: str) -> bool:
    return _attributes(node).get("bits") == 4 and node.name.removesuffix("/MatMulNBits").endswith(f"/{kind}")


def _attributes(node: onnx.NodeProto) -> Mapping[str, int]:
    if node.op_type != "MatMulNBits":
        return {}
    return {attribute.name: attribute.i for attribute in node.attribute}
