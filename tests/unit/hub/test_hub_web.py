"""Waiting, redirects, proxies and certificates."""

from __future__ import annotations

import email.utils
import ssl
import time
import urllib.error
import urllib.request

import pytest
from hub_server import Fault, Hub

from qwen_edge import hub
from qwen_edge.errors import DigestError, DownloadError, HubUnreachableError
from qwen_edge.hub import web
from qwen_edge.hub.web import Patience, TransientError

CHECKPOINT = "Qwen/Qwen3-0.6B"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    seen: list[float] = []
    monkeypatch.setattr(web.time, "sleep", seen.append)
    return seen


def test_waits_double_up_to_a_bound(waits: list[float]) -> None:
    patience = Patience(tries=9, first_wait_s=0.5, longest_wait_s=20)
    for failures in range(1, 9):
        web.wait_or_give_up(TransientError("503"), failures, patience)
    assert waits == [0.5, 1, 2, 4, 8, 16, 20, 20]
    with pytest.raises(DownloadError, match=r"503 \(9 tries\)"):
        web.wait_or_give_up(TransientError("503"), 9, patience)
    with pytest.raises(HubUnreachableError):
        web.wait_or_give_up(TransientError("silence", is_silent=True), 9, patience)


def test_a_server_that_says_when_is_obeyed(hub_server: Hub, waits: list[float]) -> None:
    later = email.utils.formatdate(time.time() + 40, usegmt=True)
    for stage, value in (("listing", 7), ("file", 3), ("file", later), ("file", "soon")):
        hub_server.faults.append(
            Fault(kind="retry_after", stage=stage, pattern="*tiny*", value=value, times=1)
        )
    hub.pull("org/tiny-GGUF@Q8_0")
    assert waits[:2] == [7, 3]
    assert 30 < waits[2] < 41
    assert waits[3] == 2  # the third failure in a row, and nothing that could be understood
    hub_server.faults.append(Fault(kind="retry_after", value=61))
    with pytest.raises(DownloadError, match="asks to wait 61 s"):
        hub.pull("org/tiny-GGUF@Q4_0")
    assert len(waits) == 4


def test_a_redirect_never_leaves_encryption() -> None:
    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(DownloadError, match="redirects from https to http://"):
        web._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/a")
    same = web._Redirects().redirect_request(request, None, 302, "", {}, "https://cdn.example.org/a")
    assert same is not None


def test_a_head_stays_a_head() -> None:
    request = urllib.request.Request("https://example.org/a", method="HEAD")
    following = web._Redirects().redirect_request(request, None, 302, "", {}, "https://example.org/b")
    assert following is not None
    assert following.get_method() == "HEAD"


def test_a_certificate_that_is_not_trusted_is_no_passing_failure() -> None:
    reason = ssl.SSLCertVerificationError(1, "certificate verify failed")
    reason.verify_message = "self-signed certificate"
    error = web.connection_error(urllib.error.URLError(reason), "https://example.org/a")
    assert not isinstance(error, TransientError)
    assert "self-signed" in error.message
    assert "SSL_CERT_FILE" in str(error.hint)


def test_with_a_proxy_the_proxy_has_to_be_there(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(reach_s=1)
    nowhere = "http://127.0.0.2:9/"
    with pytest.raises(HubUnreachableError, match=r"127\.0\.0\.2 does not answer: Connection refused"):
        web.require_reachable(nowhere, patience)
    monkeypatch.setenv("http_proxy", hub_server.endpoint)
    web.require_reachable(nowhere, patience)
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    with pytest.raises(HubUnreachableError):
        web.require_reachable(nowhere, patience)


@pytest.mark.parametrize("always", [False, True])
def test_small_files_are_checked_with_the_digest_of_git(
    hub_server: Hub, patience: Patience, always: bool
) -> None:
    name = "tokenizer.json"
    hub_server.faults.append(Fault(kind="wrong_bytes", pattern=name, times=-1 if always else 1))
    if always:
        with pytest.raises(DigestError, match="is stated"):
            hub.pull("qwen3-0.6b", source="huggingface", patience=patience)
        return
    path = hub.pull("qwen3-0.6b", source="huggingface", patience=patience).path
    assert (path / name).read_bytes() == (hub_server.folder / CHECKPOINT / name).read_bytes()
    assert hub_server.downloads(name) == 2
