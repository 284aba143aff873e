"""What a repository offers, and which of its files are wanted."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from qwen_edge.errors import DownloadError, ModelNotFoundError, UnsupportedError
from qwen_edge.quant_types import FILE_TYPE_ALIASES, FILE_TYPES, file_type

# What a checkpoint is made of; other formats in the same repository stay there, and so do most of its sub-folders.
_CHECKPOINT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "modules.json", "tokenizer.json",
                     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                     "adapter_config.json", "*.jinja", "LICENSE*", "README.md")  # fmt: skip
_CHECKPOINT_FILES_BELOW = ("*_Pooling/config.json", "additional_chat_templates/*.jinja")
# Which file to take where none was asked for: what most people run first, then the better ones, then the smaller.
_PREFERRED = (
    "Q4_K_M",
    "Q4_0",
    "Q5_K_M",
    "Q4_K_S",
    "Q6_K",
    "Q8_0",
    "IQ4_XS",
    "IQ4_NL",
    "Q3_K_M",
    "BF16",
    "F16",
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})$")
# fp16 and fp32 are how some uploaders write F16 and F32.
_TYPE_AT_END = re.compile(
    rf"(?:^|[-._])(FP16|FP32|{'|'.join(map(re.escape, sorted([*FILE_TYPES, *FILE_TYPE_ALIASES], key=len, reverse=True)))})$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file that can be fetched.

    Attributes:
        name: Relative to the repository, with forward slashes.
        url: Where its bytes are.
        size_bytes: Its length, None where only the server of the bytes knows.
        sha256: Its digest, lower-case hex; "" where the repository states only git's.
        git_sha1: Digest of a file that is kept in git itself: SHA-1 of "blob SIZE", a zero byte and its content.
        headers: To send with a request for it.
    """

    name: str
    url: str
    size_bytes: int | None = None
    sha256: str = ""
    git_sha1: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """The stated digest, whichever it is."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a repository at one revision.

    Attributes:
        kind: "huggingface", "modelscope" or "url".
        location: `owner/name`, or the URL.
        revision: Commit on Hugging Face, the revision asked for elsewhere; "" for a URL.
        licence: As the publisher states it, "" where nothing is stated.
        files: What there is.
    """

    kind: str
    location: str
    revision: str
    licence: str
    files: tuple[RemoteFile, ...]


def require_safe(file: RemoteFile, where: str) -> None:
    """Check that a file's name stays inside the folder it is put into, and that its digest is one.

    Raises:
        DownloadError: Else; nothing of it can be trusted.
    """
    path = PurePosixPath(file.name)
    bad = path.is_absolute() or ".." in path.parts or any(sign in file.name for sign in "\\:\0")
    if bad or not file.name or path.as_posix() != file.name:
        raise DownloadError(f"{where} lists a file named {file.name!r}", hint="Nothing was fetched.")
    if not (_SHA256.fullmatch(file.sha256) or (not file.sha256 and _SHA1.fullmatch(file.git_sha1))):
        raise DownloadError(
            f"{where} states no digest of {file.name}",
            hint="What cannot be checked is not fetched: try another --source.",
        )
    if file.git_sha1 and not file.sha256 and file.size_bytes is None:
        raise DownloadError(f"{where} states no size of {file.name}", hint="Try another --source.")


def has_checkpoint(listing: Listing) -> bool:
    """Return whether a repository holds weights that `qwen-edge convert` reads."""
    return any("/" not in file.name and file.name.endswith(".safetensors") for file in listing.files)


def checkpoint_files(listing: Listing) -> tuple[RemoteFile, ...]:
    """Return the files of a checkpoint, small ones first.

    Raises:
        UnsupportedError: There are no safetensors files.
    """
    if not has_checkpoint(listing):
        raise UnsupportedError(
            f"{listing.location} holds no safetensors files",
            hint="A GGUF repository is fetched with NAME@TYPE.",
        )
    wanted = [
        file
        for file in listing.files
        if any(
            fnmatch.fnmatchcase(file.name, pattern)
            for pattern in (_CHECKPOINT_FILES_BELOW if file.name.count("/") == 1 else _CHECKPOINT_FILES)
        )
        and file.name.count("/") <= 1
    ]
    return tuple(sorted(wanted, key=lambda file: (file.size_bytes or 0, file.name)))


def gguf_file(listing: Listing, type_name: str | None) -> RemoteFile:
    """Return the GGUF file of a type; without one, the one that most people run.

    Args:
        listing: A repository.
        type_name: A key of FILE_TYPES, or None.

    Raises:
        ModelNotFoundError: There is no GGUF file, or none of that type; the types there are get named.
        UnsupportedError: It is there in several parts only.
    """
    # mmproj files hold the eyes of a model, not the model.
    files = {
        file.name: file
        for file in listing.files
        if file.name.lower().endswith(".gguf") and not PurePosixPath(file.name).name.startswith("mmproj")
    }
    whole = by_type(name for name in files if not split_count(name))
    in_parts = {kind for name in files if split_count(name) and (kind := type_in_name(name))}
    if not files:
        if not has_checkpoint(listing):
            raise ModelNotFoundError(
                f"{listing.location} holds neither safetensors nor GGUF files",
                hint="Only these are read here; pickled weights (.bin) can run code when they are opened.",
            )
        raise ModelNotFoundError(
            f"{listing.location} holds no GGUF file",
            hint=f"It has a checkpoint: qwen-edge pull {listing.location}",
        )
    wanted = type_name or preferred(whole)
    if wanted is not None and wanted in whole:
        return files[whole[wanted]]
    if wanted is None and len(files) == 1 and not in_parts:
        return next(iter(files.values()))
    if wanted in in_parts:
        raise UnsupportedError(
            f"{listing.location} has {wanted} in several parts only, which are not joined here",
            hint="Take another type, or make it: qwen-edge pull the checkpoint, then convert and quantize.",
        )
    raise ModelNotFoundError(
        f"{listing.location} has no {wanted or 'GGUF file of a known type'}",
        hint=f"It has: {', '.join(sorted(whole)) or 'none that is known here'}."
        + (f" In several parts: {', '.join(sorted(in_parts))}." if in_parts else "")
        + " Others are made from the checkpoint, with qwen-edge convert and quantize.",
    )


def by_type(names: Iterable[str]) -> dict[str, str]:
    """Return type -> file name; of several with one type, the shortest name."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        kind = type_in_name(name)
        if kind is not None:
            found.setdefault(kind, name)
    return found


def preferred(types: Iterable[str]) -> str | None:
    """Return the type to take where none was asked for; None where there is no choice."""
    there = sorted(types)
    return next((kind for kind in _PREFERRED if kind in there), there[0] if there else None)


def type_in_name(name: str) -> str | None:
    """Return the quantization in a GGUF file's name, a key of FILE_TYPES."""
    stem = _SPLIT.sub("", PurePosixPath(name).name.removesuffix(".gguf").removesuffix(".GGUF"))
    found = _TYPE_AT_END.search(stem)
    if found is None:
        return None
    return file_type(found[1].upper().replace("FP", "F")).name


def split_count(name: str) -> int:
    """Return of how many parts a GGUF file is one, 0 for a whole file."""
    found = _SPLIT.search(PurePosixPath(name).name.removesuffix(".gguf"))
    return int(found[1]) if found else 0
