"""An open-loop client that costs little: fixed connections, requests at their times, no parsing.

A request is due at its time whether or not the ones before were answered; where no connection is
free it waits, and its latency counts from when it was due. Errors are counted, never retried.

Run by rate.py: reads a Job as JSON from standard input, writes an Outcome as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, cast

import msgspec
import uvloop

if TYPE_CHECKING:
    from collections.abc import Sequence

TICK_S = 0.001
PATIENCE_S = 10.0
"""After the last request was due."""

_OK = b"HTTP/1.1 200"
_LENGTH = b"content-length: "
_LAST = b"0\r\n\r\n"


class Job(msgspec.Struct, kw_only=True):
    """What to send. ``requests`` are whole HTTP requests, taken in turn."""

    port: int
    connections: int
    rate: float  # a second
    seconds: float
    requests: list[bytes]
    streamed: bool


class Outcome(msgspec.Struct, kw_only=True):
    """What came. Latencies in ms from when a request was due to its answer's last byte."""

    sent: int
    answered: int
    errors: int
    first_error: str
    seconds: float  # until the last answer
    p50_ms: float
    p99_ms: float
    max_ms: float


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due = 0.0
        self._buffer = b""
        self._end = 0  # of the answer, when its head is known
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        if self._load.streamed:
            if not buffer.endswith(_LAST):
                return
        else:
            if not self._end:
                head = buffer.find(b"\r\n\r\n")
                if head < 0:
                    return
                at = buffer.find(_LENGTH, 0, head) + len(_LENGTH)
                self._end = head + 4 + int(buffer[at : buffer.index(b"\r", at)])
            if len(buffer) < self._end:
                return
        self._buffer, self._end = b"", 0
        error = "" if buffer.startswith(_OK) else buffer[:200].decode("latin-1")
        if self._load.streamed and b'data: {"error"' in buffer:
            error = buffer[-300:].decode("latin-1")
        self._load.done(self, self._due, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(f"connection lost: {exc}")


class Load:
    """All connections, and the times at which requests are due."""

    def __init__(self, job: Job) -> None:
        self.streamed = job.streamed
        self.latencies: list[float] = []
        self.sent = 0
        self.errors: list[str] = []
        self.last_at = 0.0
        self._job = job
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._ended = False

    async def run(self) -> None:
        job, loop = self._job, asyncio.get_running_loop()
        for _ in range(job.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", job.port
            )
            self._free.append(connection)
        begun, due = time.monotonic(), 0
        number = round(job.rate * job.seconds)
        while due < number:
            now = time.monotonic() - begun
            while due < number and due / job.rate <= now:
                self._waiting.append(begun + due / job.rate)
                due += 1
            self._send()
            await asyncio.sleep(TICK_S)
        deadline = time.monotonic() + PATIENCE_S
        while len(self.latencies) + len(self.errors) < number and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
        self._ended = True
        self.last_at = time.monotonic() - begun if not self.last_at else self.last_at - begun

    def _send(self) -> None:
        requests = self._job.requests
        while self._waiting and self._free:
            connection = self._free.popleft()
            connection.ask(requests[self.sent % len(requests)], self._waiting.popleft())
            self.sent += 1

    def done(self, connection: Connection, due: float, error: str) -> None:
        self.last_at = now = time.monotonic()
        if error:
            self.errors.append(error)
        else:
            self.latencies.append(now - due)
        self._free.append(connection)
        if self._waiting:
            self._send()

    def lost(self, reason: str) -> None:
        if not self._ended:
            self.errors.append(reason)

    def outcome(self) -> Outcome:
        ordered = sorted(self.latencies) or [0.0]
        unanswered = self.sent + len(self._waiting) - len(self.latencies) - len(self.errors)
        errors = [*self.errors, *["no answer"] * unanswered]
        return Outcome(
            sent=self.sent,
            answered=len(self.latencies),
            errors=len(errors),
            first_error=errors[0] if errors else "",
            seconds=round(self.last_at, 3),
            p50_ms=_ms(ordered, 0.5),
            p99_ms=_ms(ordered, 0.99),
            max_ms=_ms(ordered, 1.0),
        )


def _ms(ordered: Sequence[float], share: float) -> float:
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def main() -> None:
    load = Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    uvloop.run(load.run())
    sys.stdout.buffer.write(msgspec.json.encode(load.outcome()))


if __name__ == "__main__":
    main()
