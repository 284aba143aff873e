"""A file at any URL, with a digest that the person states: a release on GitHub, a mirror."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from qwen_edge.errors import ConfigError, DownloadError
from qwen_edge.hub.listing import Listing, RemoteFile
from qwen_edge.hub.web import Patience, StatusError, is_loopback, open_url, require_reachable, with_patience

_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_file(url: str, sha256: str | None, patience: Patience) -> Listing:
    """Return the one file at a URL.

    Raises:
        ConfigError: No digest, not https, or no file name in it.
        HubUnreachableError: The server does not answer.
    """
    digest = (sha256 or "").lower().removeprefix("sha256:")
    if not digest:
        raise ConfigError(
            f"no digest is stated for {url}, so nothing would tell whether what arrives is what was published",
            hint="Add --sha256 HEX, as its publisher states it (a release on GitHub shows it beside each file).",
        )
    if not _SHA256.fullmatch(digest):
        raise ConfigError(f"{sha256!r} is no SHA-256", hint="It has 64 hexadecimal digits.")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url)):
        raise ConfigError(f"{url} is not https", hint="Plain http is taken from this machine only.")
    name = PurePosixPath(unquote(parts.path)).name
    if not name.lower().endswith(".gguf"):
        raise ConfigError(
            f"{url} does not end with the name of a GGUF file", hint="Checkpoints come from a hub."
        )
    require_reachable(url, patience)
    file = RemoteFile(name=name, url=url, size_bytes=_size(url, patience), sha256=digest)
    # Written down without what may be a password or a signature.
    location = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return Listing(kind="url", location=location, revision="", licence="", files=(file,))


def refusal(error: StatusError, url: str) -> DownloadError:
    """Return the error for a person whom a server refused a file."""
    if error.status in (401, 403):
        return DownloadError(
            f"{error.message}: it asks for a login",
            hint="Fetch it with a program that can log in, and name the file instead.",
        )
    if error.status == 404:
        return DownloadError(f"{error.message}: there is no such file", hint="Check the address.")
    return error


def _size(url: str, patience: Patience) -> int | None:
    """Return the length that the server states; None where it states none before it sends the file."""

    def ask() -> int | None:
        try:
            with open_url(url, method="HEAD", timeout_s=patience.timeout_s / 2) as answer:
                length = answer.headers.get("Content-Length", "")
        except StatusError:
            return None  # signed addresses are good for one method; what is wrong shows when it is fetched
        return int(length) if length.isdigit() else None

    return with_patience(ask, patience)
