"""A client that costs little: fixed connections, requests at their times, hardly any parsing.

Open loop: a request is due at its time whether or not the ones before were answered; where no
connection is free it waits, and its latency counts from when it was due. Closed loop (``rate``
0): each connection asks again as soon as it is answered, until the time is over. Errors are
counted, never retried: any status but 200, and an answer without what is expected in it.

Run by rate.py and gateway_peers.py: reads a Job as JSON from standard input, writes an Outcome as
JSON.
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
_EVENT = b"data:"


class Job(msgspec.Struct, kw_only=True):
    """What to send. ``requests`` are whole HTTP requests, taken in turn."""

    port: int
    connections: int
    rate: float  # a second; 0: closed loop
    seconds: float
    requests: list[bytes]
    streamed: bool
    ramp_s: float = 0.0
    """Closed loop: the connections begin one after another within that time."""

    expected: bytes = b""
    """What each answer must hold, ``times`` times; empty: nothing is looked for."""

    times: int = 1


class Outcome(msgspec.Struct, kw_only=True):
    """What came. Latencies in ms from when a request was due to its answer's last byte.

    The time to the first event of a stream counts from when the request was sent.
    """

    sent: int
    answered: int
    errors: int
    first_error: str
    seconds: float  # until the last answer
    p50_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    first_p99_ms: float
    reads: int
    """How many pieces the answers came in: fewer than events where some were held back."""


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due = self._sent_at = 0.0
        self._first_at = 0.0
        self.reads = 0
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, due: float) -> None:
        self._due, self._sent_at, self._first_at = due, time.monotonic(), 0.0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        self.reads += 1
        job = self._load.job
        if job.streamed and not self._first_at and _EVENT in buffer:
            self._first_at = time.monotonic()
        if not is_whole(buffer, streamed=job.streamed):
            return
        self._buffer = b""
        error = error_of(buffer, job)
        self._load.done(self, self._due, self._first_at - self._sent_at, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self, f"connection lost: {exc}")


def is_whole(answer: bytes, *, streamed: bool) -> bool:
    """Whether that is all of an answer: of a length that its head says, or chunked."""
    if streamed and answer.startswith(_OK):
        return answer.endswith(_LAST)
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = answer[: head + 2].lower().partition(_LENGTH)[2].partition(b"\r")[0]
    return len(answer) >= head + 4 + int(length) if length else answer.endswith(_LAST)


def error_of(answer: bytes, job: Job) -> str:
    """Return what is wrong with an answer, empty if nothing is."""
    if not answer.startswith(_OK):
        return answer[:200].decode("latin-1")
    if job.streamed and b'data: {"error"' in answer:
        return answer[-300:].decode("latin-1")
    if job.expected and (found := answer.count(job.expected)) != job.times:
        return f"{job.expected!r} {found} times, not {job.times}: {answer[-300:]!r}"
    return ""


class Load:
    """All connections, and the times at which requests are due."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._latencies: list[float] = []
        self._firsts: list[float] = []
        self._sent = 0
        self._errors: list[str] = []
        self._last_at = 0.0
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._again_until = 0.0  # a connection that is answered asks again at once
        self._ended = False

    async def run(self) -> None:
        job, loop = self.job, asyncio.get_running_loop()
        for _ in range(job.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", job.port
            )
            self._free.append(connection)
        begun = time.monotonic()
        await (self._open(begun) if job.rate else self._closed(begun))
        deadline = time.monotonic() + PATIENCE_S
        while self._missing() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
        self._ended = True
        self._last_at = (self._last_at or time.monotonic()) - begun

    async def _open(self, begun: float) -> None:
        """Let requests become due at their times."""
        rate, due = self.job.rate, 0
        number = round(rate * self.job.seconds)
        while due < number:
            now = time.monotonic() - begun
            while due < number and due / rate <= now:
                self._waiting.append(begun + due / rate)
                due += 1
            self._send()
            await asyncio.sleep(TICK_S)

    async def _closed(self, begun: float) -> None:
        """Keep every connection busy until the time is over."""
        job, loop = self.job, asyncio.get_running_loop()
        self._again_until = begun + job.seconds
        for place in range(job.connections):
            loop.call_later(job.ramp_s * place / job.connections, self._begin)
        await asyncio.sleep(max(job.seconds, job.ramp_s + TICK_S))

    def _begin(self) -> None:
        self._waiting.append(time.monotonic())
        self._send()

    def _missing(self) -> int:
        """Return how many requests are still to be answered."""
        return self._sent + len(self._waiting) - len(self._latencies) - len(self._errors)

    def _send(self) -> None:
        requests = self.job.requests
        while self._waiting and self._free:
            connection = self._free.pop()  # the one last used, as of a pool
            connection.ask(requests[self._sent % len(requests)], self._waiting.popleft())
            self._sent += 1

    def done(self, connection: Connection, due: float, first: float, error: str) -> None:
        self._last_at = now = time.monotonic()
        if error:
            self._errors.append(error)
        else:
            self._latencies.append(now - due)
            self._firsts.append(first)
        self._free.append(connection)
        if now < self._again_until:
            self._waiting.append(now)
        if self._waiting:
            self._send()

    def lost(self, connection: Connection, reason: str) -> None:
        """A server may close a connection that nobody used for long; another one is no error."""
        if connection in self._free:
            self._free.remove(connection)
        elif not self._ended:
            self._errors.append(reason)

    def outcome(self) -> Outcome:
        ordered = sorted(self._latencies) or [0.0]
        firsts = sorted(self._firsts) or [0.0]
        errors = [*self._errors, *["no answer"] * self._missing()]
        return Outcome(
            sent=self._sent,
            answered=len(self._latencies),
            errors=len(errors),
            first_error=errors[0] if errors else "",
            seconds=round(self._last_at, 3),
            p50_ms=_ms(ordered, 0.5),
            p99_ms=_ms(ordered, 0.99),
            max_ms=_ms(ordered, 1.0),
            first_p50_ms=_ms(firsts, 0.5),
            first_p99_ms=_ms(firsts, 0.99),
            reads=sum(connection.reads for connection in self._free),
        )


def _ms(ordered: Sequence[float], share: float) -> float:
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def main() -> None:
    load = Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    uvloop.run(load.run())
    sys.stdout.buffer.write(msgspec.json.encode(load.outcome()))


if __name__ == "__main__":
    main()
