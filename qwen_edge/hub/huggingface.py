"""Hugging Face: what is in a repository, through huggingface_hub, with its tokens, endpoint and offline mode.

The bytes are fetched by qwen_edge.hub.transfer. huggingface_hub checks no SHA-256, and since it writes to a file of
its own for each process (2.x) it begins again after a kill. Its Xet client is not used: every file is served over
plain HTTP too.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from qwen_edge.errors import DownloadError, HubUnreachableError
from qwen_edge.hub.hf_settings import endpoint
from qwen_edge.hub.listing import Listing, RemoteFile
from qwen_edge.hub.web import (
    Patience,
    StatusError,
    TransientError,
    require_reachable,
    status_error,
    with_patience,
)

NAME = "Hugging Face"


def list_files(repository: str, revision: str | None, patience: Patience) -> Listing:
    """Return the files of a repository.

    Args:
        repository: `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        patience: When to give up.

    Raises:
        HubUnreachableError: The hub does not answer.
        DownloadError: It has no such repository or revision, or does not show it.
    """
    address = endpoint()
    require_reachable(address, patience)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # not in its types

    api = HfApi(endpoint=address)
    info = with_patience(lambda: _model_info(api, repository, revision, patience), patience)
    if info.sha is None:
        raise DownloadError(
            f"the hub states no commit of {repository}", hint="Check HF_ENDPOINT: is that a hub?"
        )
    # "authorization" alone: the rest says who asks, which is told in our own words.
    token = build_hf_headers().get("authorization")
    headers = {"Authorization": token} if token else {}
    base = f"{address}/{repository}/resolve/{info.sha}"
    files = tuple(
        RemoteFile(
            name=item.rfilename,
            url=f"{base}/{quote(item.rfilename)}",
            size_bytes=item.size,
            sha256=item.lfs.sha256 if item.lfs is not None else "",
            git_sha1=item.blob_id or "" if item.lfs is None else "",
            headers=headers,
        )
        for item in info.siblings or ()
    )
    return Listing(
        kind="huggingface", location=repository, revision=info.sha, licence=_licence(info), files=files
    )


def refusal(error: StatusError, repository: str, revision: str | None) -> DownloadError:
    """Return the error for a person whom the hub refused something of a repository."""
    address = endpoint()
    if error.code == "GatedRepo":
        return DownloadError(
            f"{repository} is given only to those who accepted its licence (status {error.status})",
            hint=f"Accept it at {address}/{repository}, then log in with: hf auth login",
        )
    if error.code == "RevisionNotFound":
        return DownloadError(
            f"{repository} has no revision {revision!r}",
            hint=f"Branches, tags and commits: {address}/{repository}/commits/main",
        )
    if error.code == "EntryNotFound":
        return DownloadError(
            f"{error.message}: {repository} has no such file", hint="Try again: it may have moved."
        )
    if error.status in (401, 404):
        return DownloadError(
            f"{address} has no repository {repository}, or it is private (status {error.status})",
            hint="Check the name. For a private one, log in with: hf auth login",
        )
    if error.status == 403:
        return DownloadError(
            f"{address} refuses {repository} with this login (status 403)",
            hint=f"See {address}/{repository}, or log in as another: hf auth login",
        )
    return error


def _model_info(api: Any, repository: str, revision: str | None, patience: Patience) -> Any:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # Its client's own base class: that of requests, httpx or httpx2, depending on huggingface_hub's version.
    transport_error: Any = HfHubHTTPError.__bases__[0]
    try:
        return api.model_info(
            repository, revision=revision, files_metadata=True, timeout=patience.timeout_s / 2
        )
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            "HF_HUB_OFFLINE=1 forbids asking the hub", hint="Unset HF_HUB_OFFLINE to fetch it."
        ) from error
    except HFValidationError as error:
        raise DownloadError(
            f"{repository!r} is no repository: {error}", hint="As in Qwen/Qwen3-0.6B."
        ) from error
    except HfHubHTTPError as error:
        response = error.response
        retry_after, code = response.headers.get("Retry-After"), response.headers.get("X-Error-Code")
        what = f"{repository} on {api.endpoint}"
        mapped = status_error(response.status_code, what, retry_after=retry_after, code=code)
        if isinstance(mapped, StatusError):
            mapped = refusal(mapped, repository, revision)
        raise mapped from error
    except ValueError as error:
        raise TransientError(f"{api.endpoint} answers no JSON: {error}") from error
    except (transport_error, OSError) as error:
        raise TransientError(f"{api.endpoint}: {error or type(error).__name__}", is_silent=True) from error


def _licence(info: Any) -> str:
    stated = info.card_data.get("license") if info.card_data is not None else None
    if isinstance(stated, str):
        return stated
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return tags[0] if tags else ""
