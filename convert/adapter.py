"""A PEFT adapter on disk: its settings, and its tensors in pairs, each checked against the model it is meant for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_edge.convert.adapter_config import LoraConfig, parse_adapter_config
from qwen_edge.convert.dtypes import decode
from qwen_edge.convert.json_files import read_object
from qwen_edge.convert.qwen import ExpectedTensor, QwenConfig, expected_tensors
from qwen_edge.convert.safetensors_file import TensorEntry, read_header
from qwen_edge.errors import CheckpointError, ModelNotFoundError, UnsupportedError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_WRONG_BASE = (
    "Was the adapter trained on another model? It has to be merged into the one that it was trained on."
)
_SAVE_AGAIN = "Save the adapter again with PEFT (save_pretrained), or fetch it again with all its files."

# PEFT puts this before every name of the model it wraps.
_PREFIX = "base_model.model."
# What stands behind a module's name. "default" is the adapter's name while it is trained; PEFT leaves it out when it
# saves, other programs do not.
_ROLE = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])(?:\.default)?\.weight"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.default)?(?:\.weight)?)"
)


@dataclass(frozen=True)
class LoraPair:
    """The change of one matrix: scaling * B @ A.

    Attributes:
        target: The matrix of the model, [rows, columns].
        a: [rank, columns].
        b: [rows, rank].
        scaling: Factor before B @ A: alpha / rank, or alpha / sqrt(rank).
        magnitude: Of DoRA: the length of each row of the changed matrix, [rows].
    """

    target: ExpectedTensor
    a: TensorEntry
    b: TensorEntry
    scaling: float
    magnitude: TensorEntry | None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. Only headers and adapter_config.json have been read.

    Attributes:
        folder: Where its files lie, absolute.
        config: Its settings.
        pairs: Its changes, in the order of the model's tensors.
    """

    folder: Path
    config: LoraConfig
    pairs: tuple[LoraPair, ...]

    @property
    def weights_file(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_NAME


def is_adapter_folder(source: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder that looks like a PEFT adapter."""
    return (Path(source) / CONFIG_NAME).is_file()


def open_adapter(source: str | os.PathLike[str], base: QwenConfig) -> Adapter:
    """Open an adapter folder as PEFT saves it, for a model.

    Args:
        source: The folder with adapter_config.json and adapter_model.safetensors.
        base: The model that it changes.

    Raises:
        ModelNotFoundError: There is no such folder.
        CheckpointError: Files are missing or damaged, contradict each other, or do not fit the model.
        UnsupportedError: The weights are a pickle, or the adapter changes more than can be carried over.
        OSError: A file cannot be read.
    """
    # Absolute, so that "." has a name.
    folder = Path(os.path.abspath(source))  # noqa: PTH100
    if not folder.is_dir():
        raise _no_folder_error(folder)
    config_path = folder / CONFIG_NAME
    config = parse_adapter_config(read_object(config_path), str(config_path))
    pairs = _Pairing(_weights_file(folder), config, base).pairs()
    return Adapter(folder, config, tuple(pairs))


def load_matrix(entry: TensorEntry) -> npt.NDArray[np.float32]:
    """Read a whole tensor of an adapter as float32.

    Raises:
        CheckpointError: The file ends early.
        OSError: It cannot be read.
    """
    data = b"".join(entry.read_pieces(max(entry.n_bytes, 1)))
    return decode(data, entry.dtype).reshape(entry.shape)


def _no_folder_error(path: Path) -> UnsupportedError | ModelNotFoundError:
    if path.suffix == ".gguf" and path.is_file():
        return UnsupportedError(
            f"{path} is a GGUF file; what is merged is the folder in which PEFT saved the adapter",
            hint=f"A GGUF adapter is used beside its model: qwen-edge run MODEL PROMPT --adapter {path}",
        )
    return ModelNotFoundError(
        f"there is no adapter folder at {str(path)!r}",
        hint=f"Give the folder with {CONFIG_NAME} and {WEIGHTS_NAME}, as PEFT's save_pretrained makes it.",
    )


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    pickle = path.with_suffix(".bin")
    if pickle.is_file():
        raise UnsupportedError(
            f"{pickle} is a PyTorch pickle: opening one can run any code, so only {WEIGHTS_NAME} is read",
            hint="Let the adapter's publisher save it with save_pretrained(…, safe_serialization=True).",
        )
    raise CheckpointError(f"{WEIGHTS_NAME} is missing from {folder}", hint=_SAVE_AGAIN)


class _Pairing:
    """Brings the tensors of one file together by module, and accounts for all of them."""

    def __init__(self, path: Path, config: LoraConfig, base: QwenConfig) -> None:
        self.path = path
        self.config = config
        self.base = base
        self.targets = {tensor.name: tensor for tensor in expected_tensors(base)}
        # Name of the matrix in the model -> (module as the adapter spells it, tensors by role).
        self.found: dict[str, tuple[str, dict[str, TensorEntry]]] = {}
        for entry in read_header(path):
            self._sort_in(entry)

    def pairs(self) -> Iterator[LoraPair]:
        """Yield the pairs in the order of the model's tensors."""
        if not self.found:
            raise CheckpointError(f"{self.path} holds no LoRA tensors", hint=_SAVE_AGAIN)
        self._check_complete()
        for name, target in self.targets.items():
            if name in self.found:
                yield self._pair(target, *self.found[name])

    def _sort_in(self, entry: TensorEntry) -> None:
        match = _ROLE.fullmatch(entry.name)
        if match is None:
            raise self._unexpected_error(entry)
        module = match["module"].removeprefix(_PREFIX)
        role = match["side"] or match["magnitude"]
        target = self._target(entry, module)
        _, roles = self.found.setdefault(target.name, (module, {}))
        if role in roles:
            raise CheckpointError(
                f"{self.path} holds one tensor twice: {roles[role].name!r} and {entry.name!r}",
                hint=_SAVE_AGAIN,
            )
        if not self.config.is_target(module):
            raise CheckpointError(
                f"{self.path} holds {entry.name!r}, which 'target_modules' in {CONFIG_NAME} does not list",
                hint=_SAVE_AGAIN,
            )
        entry.check_convertible()
        roles[role] = entry

    def _target(self, entry: TensorEntry, module: str) -> ExpectedTensor:
        name = f"{module.removeprefix('model.')}.weight"
        if name == "lm_head.weight" and self.base.is_tied:
            # One matrix serves both ends of the model, and the adapter was trained to change one end.
            raise UnsupportedError(
                f"{entry.name!r} in {self.path} changes the head, which the model shares with its embedding",
                hint="Merge it with PEFT, save the model with a head of its own "
                '("tie_word_embeddings": false), and convert that.',
            )
        target = self.targets.get(name)
        if target is None or len(target.shape) != 2 or name == "embed_tokens.weight":
            raise CheckpointError(
                f"{entry.name!r} in {self.path} changes {name!r}, which is no linear layer of "
                f"{self.base.architecture} with {self.base.n_layers} layers",
                hint=_WRONG_BASE,
            )
        return target

    def _unexpected_error(self, entry: TensorEntry) -> CheckpointError | UnsupportedError:
        if "lora_embedding_" in entry.name or ".base_layer." in entry.name:
            return UnsupportedError(
                f"{entry.name!r} in {self.path} belongs to an adapted embedding, which is not supported",
                hint="Qwen's small models share it with the head, and the adapter was trained to change one of the two. "
                "Train without embed_tokens among the target modules.",
            )
        name = entry.name.removeprefix(_PREFIX).removeprefix("model.")
        if name in self.targets or name == "lm_head.weight":
            return UnsupportedError(
                f"{entry.name!r} in {self.path} replaces a whole tensor ('modules_to_save'), which is not supported",
                hint="Merge it with PEFT (merge_and_unload, then save_pretrained) and convert what this makes.",
            )
        return CheckpointError(
            f"{self.path} holds {entry.name!r}, which is no tensor of a LoRA or DoRA adapter",
            hint=_SAVE_AGAIN,
        )

    def _check_complete(self) -> None:
        """Check that each module which the config lists is there in all layers."""
        if not self.config.targets:
            return
        for name, target in self.targets.items():
            module = name.removesuffix(".weight")
            is_linear = len(target.shape) == 2 and name != "embed_tokens.weight"
            if is_linear and name not in self.found and self.config.is_target(f"model.{module}"):
                raise CheckpointError(
                    f"{self.path} lacks the pair of {module!r}, which 'target_modules' in {CONFIG_NAME} lists",
                    hint=_SAVE_AGAIN,
                )

    def _pair(self, target: ExpectedTensor, module: str, roles: dict[str, TensorEntry]) -> LoraPair:
        rows, columns = target.shape
        rank = self.config.rank_of(module)
        shapes: dict[str, tuple[int, ...]] = {"A": (rank, columns), "B": (rows, rank)}
        if self.config.uses_dora:
            shapes["magnitude_vector"] = (rows,)
        for role, shape in shapes.items():
            if role not in roles:
                raise CheckpointError(
                    f"{self.path} lacks lora_{role} of {module!r} ({next(iter(roles.values())).name!r} is there)",
                    hint=_SAVE_AGAIN,
                )
            if roles[role].shape != shape:
                raise CheckpointError(
                    f"{roles[role].name!r} in {self.path} has shape {list(roles[role].shape)}; rank {rank} and the "
                    f"model's {target.name!r} of {list(target.shape)} ask for {list(shape)}",
                    hint=_WRONG_BASE,
                )
        magnitude = roles.get("magnitude_vector")
        if magnitude is not None and not self.config.uses_dora:
            raise CheckpointError(
                f"{self.path} holds {magnitude.name!r}, but 'use_dora' in {CONFIG_NAME} is not true",
                hint=_SAVE_AGAIN,
            )
        return LoraPair(target, roles["A"], roles["B"], self.config.scaling_of(module), magnitude)
