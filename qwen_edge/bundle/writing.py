"""Making a bundle: whole under its name, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_edge.bundle import apps, papers
from qwen_edge.bundle.companions import Companions, find_companions
from qwen_edge.bundle.describing import describe, sampling_of, settings_of
from qwen_edge.bundle.facts import ModelFacts, read_facts
from qwen_edge.bundle.lockfile import lock_text
from qwen_edge.bundle.record import (
    LOCK_NAME,
    RECORD_NAME,
    SUMS_NAME,
    TEMPLATE_NAME,
    TENSORS_NAME,
    Bundle,
    is_bundle,
)
from qwen_edge.bundle.sections import Section, copy_hashed, sections_of, sections_to_json
from qwen_edge.bundle.speed import measure_speed, recorded_speed
from qwen_edge.config import LoadConfig
from qwen_edge.engines.onnx_folder import GRAPH_NAME, is_onnx, model_files
from qwen_edge.errors import ConfigError, FormatError
from qwen_edge.files import atomic_folder, check_free_space, sha256_file, writing
from qwen_edge.hub import origin_of
from qwen_edge.manifest import FileRecord, read_manifest
from qwen_edge.tuned import find_record

Progress = Callable[[int, int], None]

# Files beside the model, the tokenizer left out.
_SMALL_FILES_BYTES = 1_000_000
_DEFAULT_MODEL_NAME = "model.gguf"
# Of an exported folder; its manifest describes what it was made from.
_ONNX_NAMES = ("config.json", "generation_config.json", "genai_config.json", "manifest.json", "added_tokens.json",
               "special_tokens_map.json", "merges.txt", "vocab.json", TEMPLATE_NAME, *("tokenizer.json", "tokenizer_config.json"))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRequest:
    """What a bundle is to be.

    Attributes:
        load: Settings for any device: n_ctx, n_batch, n_threads, flash_attention, kv_type and load_mode are used.
        checkpoint: Folder with tokenizer and licence; None looks for the one that the model was made from.
        measure: Measure how fast the model is here.
        replace: Take the place of a bundle that is there.
    """

    load: LoadConfig
    checkpoint: Path | None = None
    measure: bool = False
    replace: bool = False


def make_bundle(
    source: Path,
    target: Path,
    request: BundleRequest,
    *,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Write a bundle of a model.

    Args:
        source: A GGUF file, or an exported ONNX folder.
        target: The folder to make.
        request: What it is to be.
        progress: Called with (done, total) bytes of the model.
        say: Takes a line for the person who waits.

    Returns:
        What bundle.json says.

    Raises:
        ConfigError: The target is there, or is no bundle; n_ctx is more than the model handles; the checkpoint is another
            model's.
        ModelNotFoundError, UnsupportedError: The source is no model, or is in several files.
        FormatError: The source is damaged, or not what its manifest says.
        NoSpaceError, WriteError: The target cannot be written.
        NativeError: The speed was to be measured, and cannot be.
    """
    check_target(target, replace=request.replace)
    facts = read_facts(source)
    load = settings_of(facts, request.load)
    origin = origin_of(facts.path)
    companions = find_companions(facts, origin, request.checkpoint)
    if companions.reason and request.checkpoint is not None:
        raise ConfigError(
            f"{request.checkpoint} is not the checkpoint of {source}: {companions.reason}",
            hint="Name the folder of its checkpoint, or leave it out: a GGUF file has its tokenizer.",
        )
    if companions.reason:
        say(f"without tokenizer.json: {companions.reason}; the model file has its tokenizer")
    files = _model_files(facts)
    copied = [*files.values(), *companions.tokenizer, *([companions.licence] if companions.licence else [])]
    needed_bytes = sum(file.stat().st_size for file in copied) + _SMALL_FILES_BYTES
    check_free_space(target, needed_bytes)
    record = find_record(facts.path)
    speed = recorded_speed(record) if record is not None else None
    if request.measure:
        say("measuring how fast it is here")
        settings, workload = (record.settings, record.workload) if record is not None else (None, None)
        speed = measure_speed(facts.path, settings, workload)
    bundle = describe(
        facts,
        load,
        origin=origin,
        companions=companions,
        record=record,
        speed=speed,
        file=next(iter(files)),
    )
    with atomic_folder(target, needed_bytes=needed_bytes) as part:
        records = _copy_model(files, facts, part, progress)
        _check_digest(facts.path, records[0].sha256)
        _write_companions(part, bundle, facts, companions)
        bundle = replace(bundle, files=_records(part, records))
        (part / "README.md").write_text(papers.readme_text(bundle, target), encoding="utf-8")
        bundle = replace(bundle, files=_records(part, list(bundle.files)))
        (part / RECORD_NAME).write_text(bundle.to_json(), encoding="utf-8")
        (part / SUMS_NAME).write_text(sums_text(bundle, sha256_file(part / RECORD_NAME)), encoding="utf-8")
    return bundle


def check_target(target: Path, *, replace: bool) -> None:
    """Refuse a target that is there, but for an empty folder, and a bundle that may be replaced.

    Raises:
        ConfigError: It may not be written.
        WriteError: Its place cannot be reached.
    """
    with writing(target):
        if target.is_file():
            raise ConfigError(f"the target {target} is a file; a bundle is a folder", hint="Name a folder.")
        if not target.is_dir() or not any(target.iterdir()):
            return
    if not is_bundle(target):
        raise ConfigError(
            f"the target {target} is a folder with other files in it",
            hint="Name a folder that is not there yet.",
        )
    if not replace:
        raise ConfigError(
            f"{target} exists already", hint="Replace it with --force, or name another folder with -o."
        )


def sums_text(bundle: Bundle, record_sha256: str) -> str:
    """Return SHA256SUMS, in the form that `sha256sum -c` reads, of a bundle whose bundle.json has that digest."""
    digests = {record.name: record.sha256 for record in bundle.files} | {RECORD_NAME: record_sha256}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def _model_files(facts: ModelFacts) -> dict[str, Path]:
    """Return the files to copy by their names in the bundle, the model first."""
    if facts.header is not None:
        name = facts.path.name
        is_portable = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        fits = is_portable and name[0].isalnum() and name.endswith(".gguf") and len(name) <= 100
        return {name if fits else _DEFAULT_MODEL_NAME: facts.path}
    files = {file.name: file for file in model_files(facts.path)}
    return (
        {GRAPH_NAME: files.pop(GRAPH_NAME)}
        | files
        | {name: facts.path / name for name in _ONNX_NAMES if (facts.path / name).is_file()}
    )


def _copy_model(
    files: dict[str, Path], facts: ModelFacts, part: Path, progress: Progress
) -> list[FileRecord]:
    """Copy the model's files; of a GGUF file write down its tensors."""
    total = sum(file.stat().st_size for file in files.values())
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, total)

    records = []
    for name, file in files.items():
        whole = (Section("whole", 0, file.stat().st_size),)
        sections = sections_of(facts.header) if facts.header is not None else whole
        digest, hashed = copy_hashed(file, part / name, sections, advance)
        records.append(FileRecord(name=name, size_bytes=(part / name).stat().st_size, sha256=digest))
        if facts.header is not None:
            (part / TENSORS_NAME).write_text(sections_to_json(hashed), encoding="utf-8")
    return records


def _check_digest(path: Path, sha256: str) -> None:
    manifest = None if is_onnx(path) else read_manifest(path)
    artefact = manifest.artefact if manifest is not None else None
    if artefact is not None and artefact.sha256 != sha256:
        raise FormatError(
            f"{path} is not the file that its manifest describes: its SHA-256 is {sha256}, expected {artefact.sha256}",
            hint="Fetch or make it again; or remove the manifest beside it, where you changed the file.",
        )


def _write_companions(part: Path, bundle: Bundle, facts: ModelFacts, companions: Companions) -> None:
    for file in companions.tokenizer:
        shutil.copyfile(file, part / file.name)
    # An exported folder brings its own.
    if facts.chat_template and not (part / TEMPLATE_NAME).exists():
        (part / TEMPLATE_NAME).write_text(facts.chat_template, encoding="utf-8", newline="")
    if facts.header is not None:
        params = apps.rn_params(bundle.model.file, bundle.load, bundle.chat, sampling_of(facts, bundle.chat))
        (part / apps.RN_NAME).write_text(apps.rn_json(params), encoding="utf-8")
    (part / LOCK_NAME).write_text(lock_text(() if facts.header is not None else ("onnx",)), encoding="utf-8")
    if companions.licence is not None:
        shutil.copyfile(companions.licence, part / "LICENSE")
    else:
        (part / "LICENSE").write_text(papers.licence_text(bundle.model, facts.row), encoding="utf-8")


def _records(part: Path, known: list[FileRecord]) -> tuple[FileRecord, ...]:
    """Describe the files that are in the folder; those that are known are not read again."""
    names = {record.name for record in known}
    new = [
        FileRecord(name=file.name, size_bytes=file.stat().st_size, sha256=sha256_file(file))
        for file in part.iterdir()
        if file.name not in names
    ]
    return tuple(sorted((*known, *new), key=lambda record: record.name))
