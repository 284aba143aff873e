"""examples/unix_service.py: a fake model behind a real socket, and the unit that starts it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_edge.errors import ConfigError

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "examples" / "raspberry-pi" / "qwen-edge.service"


def _service() -> Any:
    spec = importlib.util.spec_from_file_location("unix_service", ROOT / "examples" / "unix_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


service = _service()


class FakeModel:
    """Answers with the prompt in capitals; "wait" waits until `go` is set, "refuse" is refused."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()
        self.n_cancelled = 0
        self.n_at_once = self.most_at_once = 0

    @contextlib.contextmanager
    def session(self) -> Iterator[FakeModel]:
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            yield self
        finally:
            self.n_at_once -= 1

    async def asend(self, prompt: str, **options: object) -> SimpleNamespace:
        assert options == {"thinking": "off", "max_tokens": service.MAX_TOKENS}
        if prompt == "refuse":
            raise ConfigError("that is not asked here")
        try:
            if prompt == "wait":
                self.waiting.set()
                await self.go.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        return SimpleNamespace(text=prompt.upper(), finish_reason="stop")


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: object) -> Any:
        self.send(request)
        return await self.answer()

    def send(self, request: object) -> None:
        line = request if isinstance(request, bytes) else json.dumps(request).encode()
        self.writer.write(line + b"\n")

    async def answer(self) -> Any:
        return json.loads(await self.reader.readline())


Connect = Callable[[], Awaitable[Client]]


def run(tmp_path: Path, test: Callable[[FakeModel, Connect], Awaitable[None]]) -> None:
    """Run a test beside the service; SIGTERM ends that."""
    path = str(tmp_path / "s")

    @contextlib.asynccontextmanager
    async def serving(model: FakeModel) -> AsyncIterator[None]:
        task = asyncio.ensure_future(service.serve(model, path))
        while not Path(path).exists():
            await asyncio.sleep(0.001)
        try:
            yield
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await task

    async def connect() -> Client:
        client = Client(*await asyncio.open_unix_connection(path))
        clients.append(client)
        return client

    async def main() -> None:
        model = FakeModel()
        async with asyncio.timeout(30), serving(model):
            await test(model, connect)
        for client in clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()

    clients: list[Client] = []
    before = os.umask(0o022)
    try:
        asyncio.run(main())
        assert os.umask(0o022) == 0o022, "the umask is put back"
    finally:
        os.umask(before)


def test_one_line_brings_one_line(tmp_path: Path) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        client = await connect()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        for prompt in ("one", "zwei", "三"):
            assert await client.ask({"prompt": prompt}) == {"text": prompt.upper(), "finish_reason": "stop"}
        assert await client.ask({"prompt": "refuse"}) == {"error": "ConfigError: that is not asked here"}

    run(tmp_path, test)


@pytest.mark.parametrize("line", [b"{", b"[]", b"7", b"{}", b"", b'"prompt"', b"\xff", b"[" * 5000])
def test_what_is_no_request_is_an_error_and_the_next_is_answered(tmp_path: Path, line: bytes) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        client = await connect()
        assert list(await client.ask(line)) == ["error"]
        assert (await client.ask({"prompt": "hi"}))["text"] == "HI"

    run(tmp_path, test)


def test_a_reply_is_cancelled_by_a_line_or_by_leaving(tmp_path: Path) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        client = await connect()
        client.send({"prompt": "wait"})
        await model.waiting.wait()
        assert await client.ask({"cancel": True}) == {"error": "cancelled"}
        assert await client.answer() == {"cancelled": True}
        model.waiting.clear()
        client.send({"prompt": "wait"})
        await model.waiting.wait()
        assert await client.ask({"prompt": "next"}) == {"error": "cancelled"}
        assert (await client.answer())["text"] == "NEXT"
        model.waiting.clear()
        client.send({"prompt": "wait"})
        await model.waiting.wait()
        client.writer.close()
        while model.n_cancelled < 3:
            await asyncio.sleep(0.001)
        assert (await (await connect()).ask({"prompt": "still here"}))["text"] == "STILL HERE"

    run(tmp_path, test)


def test_two_clients_take_turns_and_do_not_mix(tmp_path: Path) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        first, second = await connect(), await connect()
        first.send({"prompt": "wait"})
        await model.waiting.wait()
        second.send({"prompt": "second"})
        model.go.set()
        assert (await second.answer())["text"] == "SECOND"
        assert (await first.answer())["text"] == "WAIT"
        assert model.most_at_once == 1

    run(tmp_path, test)


def test_a_line_that_is_too_long_ends_its_connection_only(tmp_path: Path) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        client, other = await connect(), await connect()
        long = {"prompt": "x" * 2 * service.MAX_LINE_BYTES}
        assert await client.ask(long) == {"error": "a line has at most 65536 bytes"}
        assert await client.reader.read() == b""
        assert (await other.ask({"prompt": "hi"}))["text"] == "HI"

    run(tmp_path, test)


def test_the_service_ends_while_a_reply_is_in_flight(tmp_path: Path) -> None:
    async def test(model: FakeModel, connect: Connect) -> None:
        client = await connect()
        client.send({"prompt": "wait"})
        await model.waiting.wait()

    run(tmp_path, test)


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    """With programs that are here in place of those of the guide; a warning counts as an error."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    text = UNIT.read_text().replace("%h/qwen-edge/.venv/bin/python", "/bin/true")
    assert "/bin/true examples/unix_service.py ${QWEN_EDGE_MODEL} %t/qwen-edge/socket" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
