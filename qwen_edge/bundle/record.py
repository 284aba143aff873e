"""bundle.json: what a bundle says of itself. Schema "qwen-edge/bundle/1"; docs/bundle.md has its keys.

It is written in one form and holds its own digest, so that one changed byte shows in it alone. Whoever reads it reads a
stranger's file: names lead nowhere but into the folder, values have their types.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.bundle.json_form import from_json
from qwen_edge.config import LoadConfig
from qwen_edge.errors import ConfigError, FormatError, ModelNotFoundError, UnsupportedError
from qwen_edge.files import reading
from qwen_edge.manifest import FileRecord

SCHEMA = "qwen-edge/bundle/1"
RECORD_NAME = "bundle.json"
SUMS_NAME = "SHA256SUMS"
TENSORS_NAME = "tensors.json"
TEMPLATE_NAME = "chat_template.jinja"
LOCK_NAME = "requirements.lock"

_OTHER_SCHEMA = re.compile(r"qwen-edge/bundle/\d{1,4}")
# Portable to every file system, and no path.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A bundle has some twenty files; one of 4 MB would be no record of them.
_MAX_BYTES = 4_000_000
_MAX_FILES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """The model, and where it comes from.

    Attributes:
        file: Its name in the bundle; of an ONNX model that of the graph.
        format: "gguf" or "onnx".
        name: As the file says it, "" where it does not.
        architecture: "qwen3", "qwen2", ...
        n_params: Weights.
        type: Quantization: "Q4_0", "int4"; None where the file does not tell.
        bits_per_weight: Of all tensors.
        n_ctx_train: Tokens of context it was trained for; None where the file does not tell.
        licence: SPDX identifier or the licence's own name; "" where nothing tells.
        licence_source: Who says so: "publisher", "model file", or "catalog" of qwen-edge, by the model's name; "" for nobody.
        licence_link: Address of its text; "" where nothing tells.
        repository: Where it was published, "" for what was made here.
        revision: Commit of the repository, "" where there is none.
        tokenizer: Where its tokenizer is: "in the model file" or "tokenizer.json".
    """

    file: str
    format: str
    name: str
    architecture: str
    n_params: int
    type: str | None
    bits_per_weight: float
    n_ctx_train: int | None
    licence: str
    licence_source: str
    licence_link: str
    repository: str
    revision: str
    tokenizer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledChat:
    """How it is talked to.

    Attributes:
        template: Name of the file with the Jinja source, which is also in a GGUF; None for a model without one.
        template_form: The built-in template of llama.cpp that is nearest: "chatml"; "" where none is known to be.
        thinking: "never", "switched" (by enable_thinking) or "always".
        takes_tools: Whether the template has a place for tools.
        eos_token: Text of the token that ends a reply, "" where the file names none.
        stop: Texts that end a reply.
        golden_sha256: Digest of fixed conversations as this template renders them; None where it has today's date in it.
    """

    template: str | None
    template_form: str
    thinking: str
    takes_tools: bool
    eos_token: str
    stop: tuple[str, ...]
    golden_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledSettings:
    """How it is loaded on any device. As in LoadConfig; n_threads None leaves the number to the device."""

    n_ctx: int
    n_batch: int
    n_threads: int | None
    flash_attention: str
    kv_type: str
    load_mode: str

    def config(self) -> LoadConfig:
        """Return them in full form.

        Raises:
            ConfigError: One is out of range.
        """
        settings: dict[str, Any] = dataclasses.asdict(self)
        return LoadConfig(**settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleMachine:
    """The machine that a bundle was made on.

    Attributes:
        architecture: As `uname -m` says it.
        cpu_name: The processor.
        cpu_features: Instruction sets that matter for the kernels, sorted.
        usable_cores: Physical cores that the process could use.
    """

    architecture: str
    cpu_name: str
    cpu_features: tuple[str, ...]
    usable_cores: int

    @classmethod
    def here(cls) -> BundleMachine:
        """Describe this machine."""
        import platform

        return cls(
            architecture=platform.machine(),
            cpu_name=device.cpu_name(),
            cpu_features=device.cpu_features(),
            usable_cores=device.usable_cores(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledTuning:
    """What `qwen-edge tune` found on the machine of the bundle.

    Attributes:
        settings, workload, speeds, speculation, speculation_gain: As in tuned.TuneRecord.
    """

    settings: dict[str, Any]
    workload: dict[str, Any]
    speeds: dict[str, Any]
    speculation: str
    speculation_gain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledSpeed:
    """What was measured on the machine of the bundle, tokens/s of all sessions together.

    Attributes:
        prefill_tokens_per_s: Reading a prompt.
        decode_tokens_per_s: Writing an answer.
        prompt_tokens: Length of that prompt.
        depth: Tokens in the context before it.
        n_sessions: Conversations at once.
        settings: As in tuned.Settings.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prompt_tokens: int
    depth: int
    n_sessions: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledBuild:
    """The engine of the machine that a bundle was made on.

    Attributes:
        engine: "llama-cpp-python" or "onnxruntime".
        version: Of that package; None where none was there.
        key: Name of the build by `qwen-edge setup`, None of another one.
        kernels: Functions of llama.cpp that kernels of ours replace.
    """

    engine: str
    version: str | None
    key: str | None
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """The memory that one context takes, loaded with the settings of the bundle.

    Attributes:
        n_ctx: Tokens.
        kernels: Of the build that this is for: () for plain ones.
        weights_bytes, head_copy_bytes, kv_bytes, compute_bytes, runtime_bytes, mapped_bytes: As in MemoryEstimate.
        peak_bytes: Together.
    """

    n_ctx: int
    kernels: tuple[str, ...]
    weights_bytes: int
    head_copy_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    mapped_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All of bundle.json but schema and digest.

    Attributes:
        made_with: Package -> version.
        model: The model.
        chat: How it is talked to.
        sampling: What its authors recommend, "direct" and "thinking": keys of SamplingConfig, or None.
        load: Settings for any device.
        memory: What contexts take.
        machine: Where the bundle was made, and tuned and measured, if it was.
        tuned: What tuning found there; None where it was not tuned.
        speed: What was measured there; None where nothing was.
        build: The engine there.
        llama_cpp: Program of llama.cpp -> command line with these settings.
        files: All files but this one and SHA256SUMS.
    """

    made_with: dict[str, Any]
    model: BundledModel
    chat: BundledChat
    sampling: dict[str, Any]
    load: BundledSettings
    memory: tuple[MemoryRow, ...]
    machine: BundleMachine
    tuned: BundledTuning | None
    speed: BundledSpeed | None
    build: BundledBuild
    llama_cpp: dict[str, Any]
    files: tuple[FileRecord, ...]

    def to_json(self) -> str:
        """Return the document; equal bundles give equal text."""
        return _signed({"schema": SCHEMA, "digest": "", **dataclasses.asdict(self)})


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder with a bundle.json, whatever is in it."""
    return os.path.isfile(os.path.join(path, RECORD_NAME))  # noqa: PTH113, PTH118 - pathlib raises for long names


def read_bundle(folder: Path) -> Bundle:
    """Read what a bundle says of itself.

    Raises:
        ModelNotFoundError: It has no bundle.json.
        FormatError: That is not as make_bundle() writes it, or has been changed.
        UnsupportedError: It was made by another version of qwen-edge, in another form.
        OSError: It cannot be read.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        found = (
            f"{folder} is no bundle: it has no {RECORD_NAME}" if folder.is_dir() else f"no folder {folder}"
        )
        raise ModelNotFoundError(found, hint="Make a bundle with: qwen-edge bundle MODEL -o FOLDER")
    if path.is_symlink():
        raise _damaged(path, "it is a link, not a file")
    try:
        with reading(path), path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        return parse_bundle(data.decode("utf-8"), str(path))
    except RecursionError as error:
        raise _damaged(path, "it is nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, "it is no JSON, or cut off") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def parse_bundle(text: str, name: str = RECORD_NAME) -> Bundle:
    """Return what a document says.

    Args:
        text: The document.
        name: What messages call it.

    Raises:
        ValueError: It is not as Bundle.to_json() writes it.
        RecursionError: It is nested too deeply.
        UnsupportedError: It has another version of the schema.
    """
    value = json.loads(text)
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, str) and _OTHER_SCHEMA.fullmatch(schema) and schema != SCHEMA:
        raise UnsupportedError(
            f"{name} has the schema {schema}; this version reads {SCHEMA}",
            hint="Take the version of qwen-edge that made the bundle, or make it again with this one.",
        )
    if schema != SCHEMA:
        raise ValueError(f"its schema is {str(schema)[:40]!r}, expected {SCHEMA!r}")
    bundle = from_json(Bundle, value)
    _check(bundle)
    if text != _signed(value):
        raise ValueError("it was changed: its digest is another one")
    return bundle


def bundled_model(path: Path) -> Path:
    """Return the model in a bundle: a GGUF file, or the bundle itself for ONNX; a path that is no bundle as it is.

    Raises:
        ModelNotFoundError: The bundle lacks it.
        FormatError: The bundle is damaged, or one of its files is a link out of it.
    """
    if not is_bundle(path):
        return path
    bundle = read_bundle(path)
    model = path / bundle.model.file
    for record in bundle.files:
        if (path / record.name).is_symlink():
            raise FormatError(
                f"{path / record.name} is a link, and a bundle holds its files itself",
                hint=f"What else is wrong with it: qwen-edge verify-bundle {path}",
            )
    if not model.is_file():
        raise ModelNotFoundError(
            f"the bundle {path} lacks its model {bundle.model.file}",
            hint=f"Copy it again. What else is missing: qwen-edge verify-bundle {path}",
        )
    return path if bundle.model.format == "onnx" else model


def _signed(value: dict[str, Any]) -> str:
    """Return a document with its digest, which is that of the document with "" in the digest's place."""
    digest = hashlib.sha256(_text(value | {"digest": ""}).encode()).hexdigest()
    return _text(value | {"digest": digest})


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _check(bundle: Bundle) -> None:
    """Raise ValueError for values that have their type and cannot be."""
    names = [record.name for record in bundle.files]
    for name in (bundle.model.file, *names):
        if not _FILE_NAME.fullmatch(name) or name in (RECORD_NAME, SUMS_NAME):
            raise ValueError(f"{name[:60]!r} cannot be the name of a file in a bundle")
    if len(names) > _MAX_FILES or len({name.lower() for name in names}) < len(names):
        raise ValueError("files has a name twice, or too many")
    for needed in (bundle.model.file, LOCK_NAME, *([TEMPLATE_NAME] if bundle.chat.template else [])):
        if needed not in names:
            raise ValueError(f"files lacks {needed}")
    for record in bundle.files:
        if not _SHA256.fullmatch(record.sha256) or record.size_bytes < 0:
            raise ValueError(f"size or digest of {record.name} cannot be")
    if bundle.model.format not in ("gguf", "onnx"):
        raise ValueError(f"model.format is {bundle.model.format[:20]!r}, known are gguf and onnx")
    if (bundle.model.format == "gguf") != bundle.model.file.endswith(".gguf"):
        raise ValueError(
            f"model.file is {bundle.model.file}, which is not of the format {bundle.model.format}"
        )
    if bundle.chat.template not in (None, TEMPLATE_NAME):
        raise ValueError(f"chat.template is {bundle.chat.template[:60]!r}, expected {TEMPLATE_NAME}")
    try:
        bundle.load.config()
    except ConfigError as error:
        raise ValueError(f"load: {error.message}") from error


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(f"{path} is damaged: {reason}", hint="Copy the bundle again, or make it again.")
