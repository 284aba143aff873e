"""HTTP on the standard library: redirects, time limits, what a status means, and when to try again."""

from __future__ import annotations

import email.utils
import functools
import http.client
import json
import logging
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import qwen_edge
from qwen_edge.errors import DownloadError, HubUnreachableError

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Statuses that a server sends when the same question may be answered later.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_LARGEST_JSON_BYTES = 64 << 20
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to bear with a server.

    Attributes:
        timeout_s: Silence after which an answer counts as stalled.
        tries: In a row that bring nothing.
        first_wait_s: Before the second try; each wait is twice the one before.
        longest_wait_s: Also of what a server asks for with Retry-After; more than that is an error at once.
        reach_s: For finding out that there is no connection at all.
    """

    timeout_s: float = 20.0
    tries: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 60.0
    reach_s: float = 2.2


PATIENCE = Patience()


class TransientError(DownloadError):
    """A failure that may be gone in a moment.

    Attributes:
        wait_s: What the server asked to wait, None where it did not.
        is_silent: Whether there was no answer at all.
    """

    def __init__(self, message: str, *, wait_s: float | None = None, is_silent: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.is_silent = is_silent


class StatusError(DownloadError):
    """A server refused a request.

    Attributes:
        status: HTTP status.
        code: The header X-Error-Code, by which the Hugging Face hub says more; "" elsewhere.
    """

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message, hint="Check the name, and whether a browser gets it.")
        self.status = status
        self.code = code


def status_error(status: int, what: str, *, retry_after: str | None, code: str | None) -> DownloadError:
    """Return the error that stands for a status which is no success.

    Args:
        status: HTTP status, 300 to 599.
        what: Was asked for, for the message.
        retry_after: The header Retry-After of the answer.
        code: Its header X-Error-Code.
    """
    if status in _PASSING_STATUSES:
        return TransientError(f"status {status} for {what}", wait_s=_retry_after_s(retry_after))
    if 300 <= status < 400:
        return StatusError(f"{what} is redirected without end", status=status)
    return StatusError(f"status {status} for {what}", status=status, code=code or "")


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def open_url(
    url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout_s: float
) -> http.client.HTTPResponse:
    """Send a request and return its answer, to be closed by the caller; redirects are followed.

    Credentials go to the host of `url` only, and a redirect never leads from https to http.

    Raises:
        TransientError: No answer, or one that says to come back.
        StatusError: The server refuses.
        DownloadError: The URL or the server's certificate is no good.
    """
    _log.debug("%s %s", method, url.partition("?")[0])
    agent = {"User-Agent": f"qwen-edge/{qwen_edge.__version__}"}
    request = urllib.request.Request(url, method=method, headers={**agent, **(headers or {})})
    try:
        answer: http.client.HTTPResponse = _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            answered = error.headers
            retry_after, code = answered.get("Retry-After"), answered.get("X-Error-Code")
            raise status_error(error.code, url, retry_after=retry_after, code=code) from error
    except (OSError, http.client.HTTPException) as error:
        raise connection_error(error, url) from error
    return answer


def connection_error(error: Exception, url: str) -> DownloadError:
    """Return the error that stands for a connection which failed."""
    reason = getattr(error, "reason", error)
    host = urlsplit(url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(
            f"{host} shows a certificate that this machine does not trust: {reason.verify_message}",
            hint="Behind a company's proxy, set SSL_CERT_FILE to its certificates.",
        )
    text = (
        "it stopped answering" if isinstance(reason, TimeoutError) else str(reason) or type(reason).__name__
    )
    return TransientError(f"{host}: {text}", is_silent=True)


def wait_or_give_up(error: TransientError, failures: int, patience: Patience) -> None:
    """Sleep before the next try.

    Args:
        error: Why the last one failed.
        failures: Tries so far that brought nothing.
        patience: When it is enough.

    Raises:
        HubUnreachableError: Enough, without an answer.
        DownloadError: Enough, or the server asks for more time than there is.
    """
    if failures >= patience.tries:
        kind = HubUnreachableError if error.is_silent else DownloadError
        raise kind(f"{error.message} ({failures} tries)", hint="Try again later.") from error
    wait_s = error.wait_s
    if wait_s is None:
        wait_s = min(patience.first_wait_s * 2 ** (failures - 1), patience.longest_wait_s)
    if wait_s > patience.longest_wait_s:
        raise DownloadError(
            f"{error.message}: the server asks to wait {wait_s:.0f} s", hint="Try again after that time."
        ) from error
    time.sleep(wait_s)


def with_patience(action: Callable[[], T], patience: Patience) -> T:
    """Return what a short question answers; one that finds silence twice is given up.

    Raises:
        HubUnreachableError: No answer.
        DownloadError: What `action` raises, or it never succeeded.
    """
    failures = 0
    while True:
        try:
            return action()
        except TransientError as error:
            failures += 1
            if error.is_silent and failures > 1:
                raise HubUnreachableError(error.message, hint="Check the connection.") from error
            wait_or_give_up(error, failures, patience)


def get_json(url: str, patience: Patience) -> Any:
    """Return the JSON document at a URL.

    Raises:
        HubUnreachableError: No answer.
        DownloadError: The server refuses, or answers something else.
    """

    def ask() -> Any:
        with open_url(url, timeout_s=patience.timeout_s / 2) as answer:
            try:
                return json.loads(answer.read(_LARGEST_JSON_BYTES))
            except (OSError, http.client.HTTPException) as error:
                raise connection_error(error, url) from error
            except ValueError as error:
                raise TransientError(f"{url} answers no JSON: {error}") from error

    return with_patience(ask, patience)


def require_reachable(url: str, patience: Patience) -> None:
    """Check that a server takes connections, within patience.reach_s; with a proxy, that the proxy does.

    Raises:
        HubUnreachableError: It does not.
    """
    parts = urlsplit(url)
    name = parts.hostname or url
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    outcome: list[str] = []

    def connect() -> None:
        import socket

        try:
            address = (parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443))
            socket.create_connection(address, timeout=patience.reach_s).close()
            outcome.append("")
        except (OSError, ValueError) as error:
            outcome.append(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    # A thread: looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience.reach_s)
    reason = outcome[0] if outcome else f"no connection within {patience.reach_s:g} s"
    if reason:
        raise HubUnreachableError(f"{name} does not answer: {reason}", hint="Check the connection.")


def _retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which may hold a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is None:
            return None
        old_parts, new_parts = urlsplit(req.full_url), urlsplit(newurl)
        if old_parts.scheme == "https" and new_parts.scheme != "https":
            raise DownloadError(
                f"{req.full_url} redirects from https to {newurl}", hint="Nothing was fetched."
            )
        if (old_parts.scheme, old_parts.netloc) != (new_parts.scheme, new_parts.netloc):
            new.remove_header("Authorization")
        new.method = req.get_method()  # the standard library would make a GET of a HEAD
        return new


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
