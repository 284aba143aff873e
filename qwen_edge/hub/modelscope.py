"""ModelScope: what is in a repository, through its HTTP interface.

Source: modelscope/hub/api.py (get_model_files) and file_download.py (get_file_download_url) of modelscope/modelscope.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from qwen_edge.errors import ConfigError, DownloadError
from qwen_edge.hub.listing import Listing, RemoteFile
from qwen_edge.hub.web import Patience, StatusError, get_json, is_loopback, require_reachable

NAME = "ModelScope"
_DEFAULT_REVISION = "master"
_DEFAULT_DOMAIN = "www.modelscope.cn"


def endpoint() -> str:
    """Return the server's address: MODELSCOPE_ENDPOINT, else MODELSCOPE_DOMAIN, else the usual one.

    Raises:
        ConfigError: It is not https, and not this machine.
    """
    stated = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or _DEFAULT_DOMAIN
    url = (stated if "://" in stated else f"https://{stated}").rstrip("/")
    if not url.startswith("https://") and not is_loopback(url):
        raise ConfigError(
            f"ModelScope's address is {url}", hint="MODELSCOPE_ENDPOINT must begin with https://."
        )
    return url


def list_files(repository: str, revision: str | None, patience: Patience) -> Listing:
    """Return the files of a repository.

    Args:
        repository: `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        patience: When to give up.

    Raises:
        HubUnreachableError: The server does not answer.
        DownloadError: It has no such repository or revision, or does not show it.
    """
    address = endpoint()
    require_reachable(address, patience)
    wanted = revision or _DEFAULT_REVISION
    base = f"{address}/api/v1/models/{quote(repository)}/repo"
    try:
        data = get_json(f"{base}/files?Revision={quote(wanted, safe='')}&Recursive=true", patience)
    except StatusError as error:
        raise refusal(error, repository, revision) from error
    try:
        files = tuple(
            RemoteFile(
                name=str(row["Path"]),
                url=f"{base}?Revision={quote(wanted, safe='')}&FilePath={quote(str(row['Path']), safe='')}",
                size_bytes=int(row["Size"]),
                sha256=(row.get("Sha256") or "").lower(),
            )
            for row in data["Data"]["Files"]
            if row.get("Type") != "tree"
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = data.get("Message") if isinstance(data, dict) else None
        raise DownloadError(
            f"ModelScope lists no files of {repository}: {message or type(error).__name__}",
            hint=f"See {address}/models/{repository}",
        ) from error
    return Listing(kind="modelscope", location=repository, revision=wanted, licence="", files=files)


def licence(repository: str, patience: Patience) -> str:
    """Return a repository's licence as stated there, "" where none is or the server does not say."""
    try:
        data: Any = get_json(f"{endpoint()}/api/v1/models/{quote(repository)}", patience)
    except DownloadError:
        return ""
    stated = data.get("Data", {}).get("License") if isinstance(data, dict) else None
    return stated if isinstance(stated, str) else ""


def refusal(error: StatusError, repository: str, revision: str | None) -> DownloadError:
    """Return the error for a person whom ModelScope refused something of a repository."""
    if error.status in (401, 403):
        return DownloadError(
            f"ModelScope does not give {repository} to everybody (status {error.status})",
            hint="Fetch it with ModelScope's own client, and name the folder instead.",
        )
    if error.status == 404:
        at = f" at revision {revision!r}" if revision else ""
        return DownloadError(
            f"ModelScope has no repository {repository}{at} (status 404)",
            hint=f"See {endpoint()}/models/{repository}",
        )
    return error
