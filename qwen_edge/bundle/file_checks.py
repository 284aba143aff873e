"""Whether the files of a bundle are those that were put into it: each that is not is named, with what it should be."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from pathlib import Path

from qwen_edge.bundle.record import RECORD_NAME, SUMS_NAME, TENSORS_NAME, Bundle, read_bundle
from qwen_edge.bundle.report import Finding, Status
from qwen_edge.bundle.sections import damaged_sections, read_sections
from qwen_edge.bundle.writing import sums_text
from qwen_edge.errors import FormatError
from qwen_edge.files import reading, sha256_file

# Source: GNU coreutils, sha256sum: digest, two spaces (the second "*" for binary), name.
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]{0,99})")
_MAX_SUMS_BYTES = 200_000
_MOST_NAMED = 3
_SHOWN_DIGITS = 16

Say = Callable[[str], None]


def check_files(folder: Path, say: Say = lambda name: None) -> tuple[Bundle | None, list[Finding]]:
    """Compare every file of a folder with what bundle.json says of it, or SHA256SUMS where that is damaged itself.

    Args:
        folder: The bundle.
        say: Called with the name of each file before it is read.

    Returns:
        What bundle.json says, None where it is damaged; and what was found: one finding that is ok, or those that are not.

    Raises:
        ModelNotFoundError: It is no bundle.
        UnsupportedError: It has another version of the schema.
        OSError: It cannot be read.
    """
    findings = []
    bundle = None
    try:
        bundle = read_bundle(folder)
    except FormatError as error:
        findings.append(_record_finding(folder, error))
    sums = _read_sums(folder)
    expected = (
        {record.name: (record.sha256, record.size_bytes) for record in bundle.files}
        if bundle is not None
        else {name: (digest, None) for name, digest in (sums or {}).items() if name != RECORD_NAME}
    )
    for name, (sha256, size_bytes) in sorted(expected.items()):
        say(name)
        finding = _check_file(folder / name, sha256, size_bytes)
        if finding is not None:
            findings.append(finding)
    findings += _tensor_findings(folder, findings)
    findings += _check_sums(folder, bundle, sums)
    findings += _extras(folder, {RECORD_NAME, SUMS_NAME, *expected})
    if not findings:
        n_bytes = sum(size_bytes or 0 for _, size_bytes in expected.values())
        findings = [
            _file_finding("ok", f"{len(expected) + 2} files, {n_bytes:,} bytes, all as they were bundled")
        ]
    return bundle, findings


def _file_finding(status: Status, text: str, file: str = "", expected: str = "", found: str = "") -> Finding:
    return Finding(group="files", status=status, text=text, file=file, expected=expected, found=found)


def _record_finding(folder: Path, error: FormatError) -> Finding:
    reason = error.message.partition(": ")[2] or error.message
    wanted = (_read_sums(folder) or {}).get(RECORD_NAME, "")
    path = folder / RECORD_NAME
    found = sha256_file(path) if path.is_file() and not path.is_symlink() else ""
    return _file_finding("drift", f"{RECORD_NAME}: {reason}", RECORD_NAME, wanted, found)


def _check_file(path: Path, sha256: str, size_bytes: int | None) -> Finding | None:
    name = path.name
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return _file_finding("drift", f"{name} is missing", name, sha256)
    if not stat.S_ISREG(facts.st_mode):
        kind = "a link" if stat.S_ISLNK(facts.st_mode) else "no file"
        return _file_finding("drift", f"{name} is {kind}, expected a file", name, sha256)
    with reading(path):
        found = sha256_file(path)
    if found == sha256:
        return None
    if size_bytes is None or size_bytes == facts.st_size:
        length = f"{facts.st_size:,} bytes"
    else:
        length = f"{facts.st_size:,} bytes (expected {size_bytes:,})"
    digests = f"SHA-256 {found[:_SHOWN_DIGITS]}… (expected {sha256[:_SHOWN_DIGITS]}…)"
    return _file_finding("drift", f"{name} is changed: {length}, {digests}", name, sha256, found)


def _tensor_findings(folder: Path, findings: list[Finding]) -> list[Finding]:
    """Return in which tensors a changed model differs, where the list of their digests is as it was."""
    changed = {finding.file for finding in findings if finding.found}
    bad = {finding.file for finding in findings}
    models = [name for name in changed if name.endswith(".gguf")]
    if not models or TENSORS_NAME in bad or not (folder / TENSORS_NAME).is_file():
        return []
    try:
        sections = read_sections(folder / TENSORS_NAME)
    except FormatError:
        return []
    [model, *_] = models
    damaged = damaged_sections(folder / model, sections)
    if not damaged:
        return [_file_finding("drift", f"in {model}: bytes behind its end were added", model)]
    found = [
        _file_finding(
            "drift",
            f"in {model}: {section.name if section.name in ('header', 'end') else f'tensor {section.name}'}, "
            f"bytes {section.start:,} to {section.start + section.size_bytes - 1:,}",
            model,
            section.sha256,
        )
        for section in damaged[:_MOST_NAMED]
    ]
    if len(damaged) > _MOST_NAMED:
        more = len(damaged) - _MOST_NAMED
        found.append(_file_finding("drift", f"in {model}: {more:,} more of {len(sections):,} parts", model))
    return found


def _read_sums(folder: Path) -> dict[str, str] | None:
    """Return the digests in SHA256SUMS by name; None where it is missing or damaged."""
    text = _sums_of(folder)
    if text is None:
        return None
    entries = [_SUM_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    if not text.endswith("\n") or not all(entries):
        return None
    return {entry[2]: entry[1] for entry in entries if entry is not None}


def _sums_of(folder: Path) -> str | None:
    path = folder / SUMS_NAME
    if path.is_symlink() or not path.is_file():
        return None
    with reading(path), path.open("rb") as file:
        return file.read(_MAX_SUMS_BYTES).decode("utf-8", "replace")


def _check_sums(folder: Path, bundle: Bundle | None, sums: dict[str, str] | None) -> list[Finding]:
    text = _sums_of(folder)
    if text is None:
        return [_file_finding("drift", f"{SUMS_NAME} is missing, or no file", SUMS_NAME)]
    if bundle is None:
        if sums is not None:
            return []
        return [
            _file_finding("drift", f"{SUMS_NAME} is changed: it is not as sha256sum writes it", SUMS_NAME)
        ]
    expected = sums_text(bundle, sha256_file(folder / RECORD_NAME))
    if text == expected:
        return []
    digests = (hashlib.sha256(each.encode("utf-8", "replace")).hexdigest() for each in (expected, text))
    return [
        _file_finding(
            "drift", f"{SUMS_NAME} is changed: it does not say what {RECORD_NAME} does", SUMS_NAME, *digests
        )
    ]


def _extras(folder: Path, known: set[str]) -> list[Finding]:
    return [
        _file_finding("drift", f"{path.name[:100]!r} is no part of the bundle", path.name)
        for path in sorted(folder.iterdir())
        if path.name not in known
    ]
