"""Check of the hub, against servers on 127.0.0.1."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qwen_edge import paths
from qwen_edge.doctor import hub
from qwen_edge.doctor.report import Check
from qwen_edge.hub import hf_settings


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def closed() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_settings, "is_offline", lambda: False)


def look(monkeypatch: pytest.MonkeyPatch, address: str) -> Check:
    monkeypatch.setattr(hf_settings, "endpoint", lambda: address)
    (check,) = hub.check_hub()
    return check


def test_a_hub_that_answers_and_a_token_that_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    check = look(monkeypatch, server)
    assert (check.status, check.found) == ("ok", f"{server} answers, with your token")
    assert "hf_secret" not in repr(check)


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_any_answer_is_one(monkeypatch: pytest.MonkeyPatch, server: str, status: int) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    assert look(monkeypatch, server).status == "ok"


def test_silence_is_a_warning_without_models_and_a_note_with(
    monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    check = look(monkeypatch, closed)
    assert (check.status, check.cost) == ("warning", "no model is here, and none can be fetched")
    assert "does not answer" in check.found
    paths.models_folder().mkdir(parents=True)
    (paths.models_folder() / "a.gguf").touch()
    check = look(monkeypatch, closed)
    assert (check.status, check.cost) == (
        "note",
        "nothing new can be fetched; the 1 model file here will run",
    )


def test_a_server_that_takes_the_call_and_says_nothing(closed: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert hub.why_silent(address, limit_s=0.2)


def test_an_endpoint_that_is_no_address() -> None:
    assert hub.why_silent("no address at all", limit_s=0.2)


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    monkeypatch.setattr(hf_settings, "is_offline", lambda: True)
    check = look(monkeypatch, closed)
    assert (check.status, check.advice) == ("note", "unset HF_HUB_OFFLINE")
