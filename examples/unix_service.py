"""A model that stays loaded and answers on a Unix socket, a line of JSON for each: {"prompt": "Hi"} brings {"text": "Hello"}.
A next line, or the end of the connection, ends the reply in flight: {"error": "cancelled"}. {"cancel": true} does only that.
python examples/unix_service.py MODEL SOCKET        (examples/raspberry-pi/qwen-edge.service starts it with the board)"""

import asyncio
import json
import os
import signal
import sys

import qwen_edge

MAX_LINE_BYTES, MAX_TOKENS = 64 * 1024, 1024


async def answer(model: qwen_edge.Model, turn: asyncio.Lock, line: bytes) -> dict[str, object]:
    try:
        request = json.loads(line)
        if request == {"cancel": True}:
            return {"cancelled": True}
        async with turn:  # one context in memory at a time
            with model.session() as session:
                reply = await session.asend(request["prompt"], thinking="off", max_tokens=MAX_TOKENS)
        return {"text": reply.text, "finish_reason": reply.finish_reason}
    except (qwen_edge.QwenEdgeError, ValueError, KeyError, TypeError, RecursionError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


async def serve(model: qwen_edge.Model, path: str) -> None:
    turn, ended = asyncio.Lock(), asyncio.Event()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            coming = asyncio.ensure_future(reader.readline())
            while line := await coming:
                coming, reply = map(asyncio.ensure_future, (reader.readline(), answer(model, turn, line)))
                await asyncio.wait((reply, coming), return_when=asyncio.FIRST_COMPLETED)
                reply.cancel()  # does nothing to one that is done
                (out,) = await asyncio.gather(reply, return_exceptions=True)
                text = json.dumps(out if isinstance(out, dict) else {"error": "cancelled"})
                writer.write(text.encode() + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError):  # the line is too long, or nobody is there any more
            writer.write(b'{"error": "a line has at most %d bytes"}\n' % MAX_LINE_BYTES)
        finally:
            writer.close()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    umask = os.umask(0o177)  # nobody but the user who runs it may open the socket, at no moment
    server = await asyncio.start_unix_server(client, path, limit=MAX_LINE_BYTES)
    os.umask(umask)
    print(f"ready: {server.sockets[0].getsockname()}", flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    with qwen_edge.load(sys.argv[1]) as model:
        asyncio.run(serve(model, sys.argv[2]))
