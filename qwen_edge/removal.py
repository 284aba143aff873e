"""Removing what qwen-edge keeps: which things a name means, and taking them away without touching anything else."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from qwen_edge.catalog import ModelName, parse_model_name
from qwen_edge.errors import ConfigError, ModelNotFoundError, NoFolderError
from qwen_edge.hub.hf_settings import cache_folder
from qwen_edge.native.builds import builds_folder
from qwen_edge.paths import cache_root
from qwen_edge.stored import Kind, Stored


def things_of_kind(kind: Kind, stored: Sequence[Stored]) -> list[Stored]:
    """Return what is kept of a kind, less what is in use."""
    return [item for item in stored if item.kind == kind and not item.is_needed]


def things_named(text: str, stored: Sequence[Stored]) -> list[Stored]:
    """Return what a name or path means.

    Args:
        text: A model's name or a repository, which mean all that is here of it; with @TYPE one file of it; a path in our
            folders.
        stored: What there is.

    Raises:
        ModelNotFoundError: There is no such thing here.
        ConfigError: It is not ours to remove, is a part of something, or cannot go alone.
    """
    name = parse_model_name(text)
    if name.path is not None:
        return [_thing_at(name.path, stored)]
    found = [item for item in stored if item.is_model and _means(name, item)]
    if name.type_name is not None:
        found = [item for item in found if name.type_name in item.types]
        for item in found:
            if len(item.types) > 1:
                raise ConfigError(
                    f"{text} lies in the cache of Hugging Face together with {' and '.join(item.types)}, and goes with them",
                    hint=f"All of it: qwen-edge rm {item.repository}",
                )
    if not found:
        here = sorted({item.name for item in stored if item.is_model})
        raise ModelNotFoundError(
            f"{text} is not on this machine",
            hint=f"Here: {', '.join(here)}." if here else "Nothing is: qwen-edge du shows what is kept.",
        )
    return found


def _means(name: ModelName, item: Stored) -> bool:
    if name.hub_id is not None:
        return item.repository is not None and item.repository.lower() == name.hub_id.lower()
    return item.model is not None and item.model is name.model


def _thing_at(path: Path, stored: Sequence[Stored]) -> Stored:
    place = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link, and name what it leads to
    for item in stored:
        if place == Path(os.path.abspath(item.path)):  # noqa: PTH100
            return item
        if place.is_relative_to(item.path.absolute()) or place in item.extras:
            raise ConfigError(
                f"{path} is a part of {item.name}, and useless without the rest",
                hint=f"All of it: qwen-edge rm {item.remove}",
            )
    if not os.path.lexists(place):
        raise ModelNotFoundError(f"no file {path}", hint="qwen-edge du shows what is kept, and where.")
    raise ConfigError(
        f"{place} is not among what qwen-edge keeps, so it is left alone",
        hint="rm removes what qwen-edge fetched or made in its own folders (qwen-edge du). Your own files are yours to remove.",
    )


def remove(item: Stored) -> None:
    """Remove a thing with all that goes along. A link is removed itself, never what it leads to.

    Raises:
        ConfigError: Another process writes it right now, its folder cannot be written, or it lies elsewhere than it seems.
    """
    with _writers_kept_out(item):
        try:
            # Manifests first: what has lost them counts as unfinished, whatever happens next.
            for path in item.extras:
                _remove_path(path)
            if item.kind == "repository":
                _remove_repository(item)
            else:
                _remove_path(item.path)
                _remove_empty_folders(item.path.parent)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or item.path} cannot be removed: {error.strerror}",
                hint="Its folder must be writable. What could be removed before is gone; run it again.",
            ) from error


@contextlib.contextmanager
def _writers_kept_out(item: Stored) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        for path in item.locks:
            if not path.exists():
                continue
            try:
                held.enter_context(FileLock(path, timeout=0))
            except Timeout as error:
                raise ConfigError(
                    f"{item.name} is being written by another process",
                    hint="Wait for it to end, or end it; then run this again.",
                ) from error
            except OSError as error:
                raise ConfigError(
                    f"{item.path} cannot be removed: {error.strerror} ({path})",
                    hint="Its folder must be writable.",
                ) from error
        yield


def _remove_repository(item: Stored) -> None:
    """Remove a repository from the cache of Hugging Face in its own way, with all its revisions."""
    from huggingface_hub import scan_cache_dir

    _require_ours(item.path)
    cache = scan_cache_dir(cache_folder())
    only = frozenset(found for found in cache.repos if found.repo_path == item.path.resolve())
    commits = [revision.commit_hash for found in only for revision in found.revisions]
    # Of this repository alone: a commit is looked up in all that are given.
    dataclasses.replace(cache, repos=only).delete_revisions(*commits).execute()
    if item.path.exists():
        raise ConfigError(
            f"{item.path} cannot be removed: the cache of Hugging Face did not let it go",
            hint="Its folder must be writable. hf cache ls shows what is there.",
        )


def _remove_path(path: Path) -> None:
    _require_ours(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty_folders(folder: Path) -> None:
    """Remove folders that have become empty, up to those of our layout."""
    roots = {place.resolve() for place in _our_folders()}
    with contextlib.suppress(OSError):
        while folder.resolve() not in roots and folder.resolve().parent not in {cache_root().resolve()}:
            folder.rmdir()
            folder = folder.parent


def _require_ours(path: Path) -> None:
    """Check that a path lies where it seems to, whatever links are on the way.

    Raises:
        ConfigError: Else.
    """
    parent = path.parent.resolve()
    if not any(parent.is_relative_to(folder.resolve()) for folder in _our_folders()):
        raise ConfigError(
            f"{path} lies in {parent}, to which a link leads: that is outside the folders of qwen-edge",
            hint="Remove it there, if you mean that.",
        )


def _our_folders() -> tuple[Path, ...]:
    # Those below the cache may be links of the user's to a larger disk: what is fetched goes through them too.
    root = cache_root()
    names = ("models", "checkpoints", "partial", "prefixes", "manifests")
    folders = [root, *(root / name for name in names), builds_folder()]
    with contextlib.suppress(NoFolderError):
        folders.append(cache_folder())
    return tuple(folders)
