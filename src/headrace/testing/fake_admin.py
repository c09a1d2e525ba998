"""A server that answers like the admin plane and like the data port, with values that a test sets.

For tests of what stands in front of them: the console, and commands that ask for state.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from headrace import __version__
from headrace.clock import MonotonicClock
from headrace.errors import RequestError, RouteNotFound
from headrace.monitoring.shapes import (
    CandidateRow,
    Done,
    DrainOrder,
    Explanation,
    GatewayState,
    JournalEntry,
    Percentiles,
    PlacementRow,
    Rates,
    ReplicaRow,
    RequestRow,
    ScaleOrder,
    ScalingRow,
    ServerState,
    Span,
)
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.http.messages import EVENT_STREAM, JSON, Response, error_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead

_UNIX = 1_800_000_000.0


@dataclass
class FakeAdmin:
    """Implements Application. ``streams`` are the open chats, which a test feeds and ends."""

    state: ServerState
    explanations: dict[str, Explanation] = field(default_factory=dict)
    journal: list[JournalEntry] = field(default_factory=list)
    orders: list[DrainOrder | ScaleOrder] = field(default_factory=list)
    requests: list[HttpRequest] = field(default_factory=list)
    streams: list[Exchange] = field(default_factory=list)
    chat_refusal: RequestError | None = None
    is_silent: bool = False  # takes requests and does not answer

    @property
    def num_polls(self) -> int:
        """How often the state was asked for."""
        return sum(1 for request in self.requests if request.head.path == "/state")

    def refuse(self, head: RequestHead) -> RequestError | None:
        """See Application."""
        return None

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """See Application."""
        exchange.reply(error_response(error))

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """See Application."""
        self.requests.append(request)
        head = request.head
        if self.is_silent:
            return
        if head.path == "/v1/chat/completions":
            self._chat(exchange)
        elif head.path.startswith("/explain/"):
            self._explain(unquote(head.path.removeprefix("/explain/")), exchange)
        else:
            exchange.reply(Response(200, msgspec.json.encode(self._answer(request))))

    def _answer(self, request: HttpRequest) -> object:
        match request.head.path:
            case "/state":
                return self.state
            case "/journal":
                after = int(request.head.query.removeprefix("after=") or 0)
                return [entry for entry in self.journal if entry.number > after]
            case "/requests":
                return [] if self.state.gateway is None else self.state.gateway.requests
            case "/drain":
                self.orders.append(msgspec.json.decode(request.body, type=DrainOrder))
                return Done(message="draining")
            case "/scale":
                self.orders.append(msgspec.json.decode(request.body, type=ScaleOrder))
                return Done(message="scaling")
            case path:
                raise RouteNotFound(f"there is nothing at {path}")

    def _explain(self, request_id: str, exchange: Exchange) -> None:
        explanation = self.explanations.get(request_id)
        if explanation is None:
            raise RouteNotFound(f"no request {request_id} among the last {len(self.explanations)}")
        exchange.reply(Response(200, msgspec.json.encode(explanation), JSON))

    def _chat(self, exchange: Exchange) -> None:
        if self.chat_refusal is not None:
            raise self.chat_refusal
        exchange.write(b": hello\n\n", EVENT_STREAM)
        self.streams.append(exchange)


@dataclass(frozen=True, slots=True)
class FakePlaces:
    """Where a FakeAdmin listens: both answer the same."""

    admin: Path
    server_url: str


@asynccontextmanager
async def serving_admin(fake: FakeAdmin, directory: Path) -> AsyncIterator[FakePlaces]:
    """Serve ``fake`` on a Unix socket in ``directory`` and on a port of this machine."""
    listener = Listener(
        limits=HttpLimits(),
        clock=MonotonicClock(),
        application=fake,
        count=lambda number: None,
    )
    path = directory / "admin.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    tcp = socket.create_server(("127.0.0.1", 0))
    await listener.start(unix)
    await listener.start(tcp)
    try:
        yield FakePlaces(path, f"http://127.0.0.1:{tcp.getsockname()[1]}")
    finally:
        listener.close()
        await asyncio.sleep(0)  # for aborted connections to be told


def sample_state() -> ServerState:
    """Return two replicas with a little work."""
    replicas = [
        ReplicaRow(
            replica="r0",
            state="ready",
            pid=4711,
            address="/run/r0.sock",
            seconds_in_state=3600.0,
            outstanding=3,
            running=2,
            waiting=1,
            kv_used=0.31,
            kv_tokens=32768,
            cached_share=0.62,
            index="degraded",
            index_accuracy=0.71,
            resident_bytes=812 << 20,
        ),
        ReplicaRow(
            replica="r1", state="draining", reason="asked", restarts=1, outstanding=1, running=1
        ),
    ]
    return ServerState(
        version=__version__,
        url="http://127.0.0.1:8000",
        uptime=4242.0,
        floor=1,
        ceiling=3,
        desired=2,
        scaling=[ScalingRow(unix=_UNIX - 30, desired=2, present=1, reason="TTFT over target")],
        gateway=GatewayState(
            model="simulated",
            policy="predicted_ttft",
            replicas=replicas,
            waiting=0,
            waiting_tokens=0,
            running=3,
            rates=Rates(window=10.0, requests=1.5, output_tokens=81.0, cached_share=0.5),
            ttft=Percentiles(p50=0.041, p95=0.12, p99=0.3),
            itl=Percentiles(p50=0.011, p95=0.019, p99=0.03),
            requests=[
                RequestRow(
                    id="chatcmpl-0001",
                    unix=_UNIX,
                    state="stop",
                    replica="r0",
                    tenant="default",
                    prompt_tokens=120,
                    cached_tokens=64,
                    output_tokens=40,
                    migrations=1,
                    ttft=0.05,
                    seconds=0.9,
                )
            ],
        ),
        replicas=replicas,
    )


def sample_explanation() -> Explanation:
    """Return a request that moved from r1 to r0 in the middle of its answer."""
    spans = (
        ("receive", 0.0004, "", ""),
        ("prepare", 0.0021, "", "120 tokens"),
        ("queue", 0.0005, "", ""),
        ("engine queue", 0.004, "r1", ""),
        ("prefill", 0.043, "r1", "1 chunk, 64 of 120 tokens cached"),
        ("decode", 0.41, "r1", "22 tokens"),
        ("move", 0.06, "r0", "r1 is gone; 22 tokens kept"),
        ("decode", 0.375, "r0", "18 tokens"),
        ("finish", 0.005, "", ""),
    )
    starts = [sum(span[1] for span in spans[:i]) for i in range(len(spans))]
    return Explanation(
        id="chatcmpl-0001",
        unix=_UNIX,
        state="stop",
        tenant="default",
        prompt_tokens=120,
        cached_tokens=64,
        output_tokens=40,
        ttft=0.05,
        seconds=0.9,
        spans=[
            Span(name=name, start=start, seconds=seconds, replica=replica, note=note)
            for start, (name, seconds, replica, note) in zip(starts, spans, strict=True)
        ],
        placements=[
            PlacementRow(
                at=0.003,
                replica="r1",
                policy="predicted_ttft",
                reason="the least predicted time to a first token",
                predicted_ttft=0.044,
                candidates=[
                    CandidateRow(replica="r0", cost=0.093, cached_tokens=0),
                    CandidateRow(replica="r1", cost=0.044, cached_tokens=64),
                ],
            ),
            PlacementRow(
                at=0.481,
                replica="r0",
                policy="predicted_ttft",
                reason="the only one ready",
                predicted_ttft=0.058,
                candidates=[CandidateRow(replica="r0", cost=0.058, cached_tokens=0)],
            ),
        ],
    )
