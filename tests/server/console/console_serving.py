"""A console on a loopback socket in front of a fake server, and a raw client for it."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11

from headrace.server.console.app import build_console
from headrace.testing.fake_admin import FakeAdmin, sample_explanation, sample_state, serving_admin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "a-token"
STATE_SECONDS = 0.01


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


class Stream:
    """One exchange. ``head`` first, then ``more`` until it is empty."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self.reply = Reply(0, {}, b"")

    async def begin(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        fields = list(headers.items())
        if body:
            fields.append(("Content-Length", str(len(body))))
        request = h11.Request(method=method, target=path, headers=fields)
        events: list[Any] = [request, h11.EndOfMessage()]
        if body:
            events.insert(1, h11.Data(data=body))
        for event in events:
            self._writer.write(self._h11.send(event) or b"")
        response = await self._next()
        assert isinstance(response, h11.Response)
        names = {name.decode(): value.decode() for name, value in response.headers}
        self.reply = Reply(response.status_code, names, b"")

    async def more(self) -> bytes:
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def events(self) -> AsyncIterator[Any]:
        rest = b""
        while data := await self.more():
            *parts, rest = (rest + data).split(b"\n\n")
            for part in parts:
                yield json.loads(part.removeprefix(b"data: "))

    def hang_up(self) -> None:
        self._writer.close()

    async def _next(self) -> h11.Event:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._reader.read(1 << 16))
        assert isinstance(event, h11.Event)
        return event


@dataclass
class Served:
    fake: FakeAdmin
    port: int
    streams: list[Stream] = field(default_factory=list)

    async def open(
        self, method: str, path: str, body: bytes = b"", *, token: str = TOKEN, **headers: str
    ) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        fields = {"Host": f"127.0.0.1:{self.port}"}
        if token:
            fields["Authorization"] = f"Bearer {token}"
        if body:
            fields["Content-Type"] = "application/json"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        stream = Stream(reader, writer)
        self.streams.append(stream)
        await stream.begin(method, path, fields, body)
        return stream

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, token: str = TOKEN, **headers: str
    ) -> Reply:
        stream = await self.open(method, path, body, token=token, **headers)
        while data := await stream.more():
            stream.reply.body += data
        return stream.reply


@asynccontextmanager
async def serving_console(directory: Path) -> AsyncIterator[Served]:
    fake = FakeAdmin(sample_state())
    told = sample_explanation()
    fake.explanations[told.id] = told
    async with serving_admin(fake, directory) as places:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        console = build_console(
            token=TOKEN,
            port=port,
            admin=str(places.admin),
            server_url=places.server_url,
            state_seconds=STATE_SECONDS,
        )
        stop = asyncio.Event()
        serving = asyncio.create_task(console.serve(listening, stop))
        served = Served(fake, port)
        try:
            yield served
        finally:
            stop.set()
            await serving
            for stream in served.streams:
                stream.hang_up()
