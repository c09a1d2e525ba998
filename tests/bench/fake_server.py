"""A small OpenAI-compatible server inside a test: scripted answers, real sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]


@dataclass(slots=True)
class FakeServer:
    """Answers from ``respond``; notes what it was asked, and how many clients went away."""

    respond: Callable[[Seen, asyncio.StreamWriter], object]
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    lost: int = 0
    port: int = 0
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.lost += 1
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (n.partition(": ") for n in lines)}
        length = int(headers.get("content-length", "0"))
        body = json.loads(await reader.readexactly(length)) if length else {}
        seen = Seen(first.split()[1], headers, body)
        self.seen.append(seen)
        if seen.path == "/v1/models":
            await write_json(writer, {"object": "list", "data": [{"id": "tiny"}]})
            return True
        result = self.respond(seen, writer)
        if asyncio.iscoroutine(result):
            await result
        await writer.drain()
        return headers.get("connection") != "close"


async def write_json(
    writer: asyncio.StreamWriter, value: object, *, status: str = "200 OK"
) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def sse(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def text_chunk(text: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def usage_chunk(*, prompt: int, completion: int) -> dict[str, object]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    return {"choices": [], "usage": usage}


async def stream_tokens(
    seen: Seen, writer: asyncio.StreamWriter, *, usage: bool = True, delay: float = 0.0
) -> None:
    """Answer as a good server does: as many tokens as were asked for."""
    number = seen.body["max_tokens"]
    assert isinstance(number, int)
    writer.write(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    is_chat = seen.path.endswith("/chat/completions")
    if is_chat:
        first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        writer.write(chunked(sse(first)))
    for index in range(number):
        if delay:
            await asyncio.sleep(delay)
        finish = "length" if index == number - 1 else None
        text = f" t{index}"
        part = {"delta": {"content": text}} if is_chat else {"text": text}
        writer.write(chunked(sse({"choices": [{"index": 0, "finish_reason": finish, **part}]})))
        await writer.drain()
    if usage:
        writer.write(chunked(sse(usage_chunk(prompt=7, completion=number))))
    writer.write(chunked(sse(b"[DONE]")) + b"0\r\n\r\n")
