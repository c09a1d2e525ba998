"""A process that stands still (SIGSTOP) and goes on: what it says late harms nobody."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
import termios
from array import array
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lone_engine import BEAT_SECONDS, SPEC

from headrace.clock import MonotonicClock
from headrace.server.transport.frames import ConnectionLimits
from headrace.server.transport.link import EngineLink
from headrace.testing.async_test import async_test
from headrace.testing.engines import undisturbed
from headrace.types import ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from headrace.core.router.events import AttemptFailed
    from headrace.server.links import ReplicaDescription, ReplicaLink, ReplicaProcess
    from headrace.server.transport.link import _Attempt
    from headrace.types import BlockKey, Output, ReportLoad, TokenId

MANY_BYTES = 300
"""Some 20 frames of one token."""

SCRIPT = Path(__file__).parent / "lone_engine.py"


class Heard:
    """LinkEvents: tokens by request, and whether anything comes at all."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.beats: asyncio.Queue[ReplicaProcess] = asyncio.Queue()
        self.tokens: dict[str, list[TokenId]] = {}
        self.ended: dict[str, asyncio.Event] = {}

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        self.ready.set()

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        raise AssertionError(reason)

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish is not None:
                self.end(output.request_id).set()

    def end(self, name: str) -> asyncio.Event:
        return self.ended.setdefault(name, asyncio.Event())

    def failed(self, failure: AttemptFailed) -> None:
        raise AssertionError(failure)

    def beat(self, replica: ReplicaId, process: ReplicaProcess) -> None:
        self.beats.put_nowait(process)

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        pass

    def kv_changed(
        self,
        replica: ReplicaId,
        number: int,
        stored: tuple[BlockKey, ...],
        removed: tuple[BlockKey, ...],
        epoch: int = 0,
    ) -> None:
        pass

    def kv_listed(
        self, replica: ReplicaId, number: int, keys: tuple[BlockKey, ...], epoch: int = 0
    ) -> None:
        pass

    async def silence(self) -> None:
        """Wait until no heartbeat comes any more."""
        while True:
            try:
                await asyncio.wait_for(self.beats.get(), 10 * BEAT_SECONDS)
            except TimeoutError:
                return

    async def some_tokens(self, name: str) -> None:
        while len(self.tokens.get(name, ())) < 5:
            await self.beats.get()


@asynccontextmanager
async def engine_process(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPT,
        path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def transport_of(attempt: _Attempt) -> asyncio.Transport:
    assert attempt.connection is not None
    assert attempt.connection._transport is not None
    return attempt.connection._transport


async def unread_frames(attempt: _Attempt) -> None:
    """Read no more, and wait until the system holds some frames."""
    transport = transport_of(attempt)
    transport.pause_reading()
    descriptor, waiting = transport.get_extra_info("socket").fileno(), array("i", [0])
    while waiting[0] < MANY_BYTES:
        await asyncio.sleep(0)
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)


def request_of(name: str, max_tokens: int, *prompt: int) -> Request:
    return Request(id=RequestId(name), prompt=prompt, max_tokens=max_tokens)


@async_test
async def test_an_engine_that_stood_still_is_silent_and_its_late_tokens_are_ignored(tmp_path: Path):
    heard, path = Heard(), tmp_path / "r0.sock"
    async with engine_process(path) as process:
        link = EngineLink(
            replica=ReplicaId("r0"),
            gateway="g0",
            path=path,
            events=heard,
            clock=MonotonicClock(),
            limits=ConnectionLimits(),
        )
        linking = asyncio.create_task(link.run())
        await heard.ready.wait()
        moved = request_of("moved", 4000, 1, 2, 3)
        link.submit(moved)
        await heard.some_tokens(moved.id)
        attempt = link._current
        assert attempt is not None
        await unread_frames(attempt)
        process.send_signal(signal.SIGSTOP)
        link.abort(moved.id)  # the router gave it up: it goes on elsewhere
        kept = list(heard.tokens[moved.id])
        transport_of(attempt).resume_reading()
        await heard.silence()
        process.send_signal(signal.SIGCONT)
        again = request_of("moved~1", 20, *moved.prompt, *kept)
        link.submit(again)
        await heard.end(again.id).wait()
        assert heard.tokens.pop(moved.id) == kept
        assert heard.tokens == {again.id: list(undisturbed(again, SPEC).tokens)}
        assert not heard.ended.keys() - {again.id}
        linking.cancel()
        await asyncio.wait([linking])
