"""CPU time of a gateway: per streamed token, and per request with its prompt.

The gateway runs in this process over a real socket, behind it a link that answers at once: at
every step one token for each stream, as frames bring them. The client is another process that
reads and drops. What is counted is this process's CPU time, the fake link's own work included;
engines and frames are not.

    python benchmarks/micro/gateway_cost.py --model PATH.gguf [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import socket
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock
from headrace.core.scheduler.events import Output
from headrace.model.text import load_text_model
from headrace.monitoring.metrics import Registry
from headrace.monitoring.table import GATEWAY_TABLE
from headrace.server.gateway.app import Gateway, Outside, build_gateway
from headrace.server.gateway.config import GatewayConfig
from headrace.server.keys import Keys
from headrace.testing.fake_replica import FIRST, describe
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.server.links import LinkEvents
    from headrace.types import ReplicaId, Request, RequestId, TokenId

PACE = 0.005
PROMPT_BYTES = 1024
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
WORDS = [
    "the",
    "water",
    "of",
    "a",
    "mill",
    "runs",
    "in",
    "its",
    "race",
    "and",
    "the",
    "wheel",
    "turns",
    "slowly",
    "day",
    "by",
    "day",
]


class PacedReplica:
    """A link whose every step gives each request its next token, ``pace`` seconds apart.

    Steps begin when ``start_at`` requests are there, so that they are all in step.
    """

    def __init__(self, events: LinkEvents, *, vocab_size: int, pace: float, start_at: int) -> None:
        self.replica: ReplicaId = FIRST
        self.num_tokens = 0
        self._events = events
        self._vocab_size = vocab_size
        self._pace = pace
        self._start_at = start_at
        self._left: dict[RequestId, int] = {}
        self._running = False

    def connect(self) -> None:
        """Become ready."""
        self._events.replica_ready(self, describe(FIRST, vocab_size=self._vocab_size))

    def submit(self, request: Request) -> None:
        """Take a request."""
        self._left[request.id] = request.max_tokens
        if len(self._left) >= self._start_at and not self._running:
            self._running = True
            asyncio.get_running_loop().call_later(self._pace, self._step)

    def want_snapshot(self) -> None:
        """See ReplicaLink: it has no content to tell of."""

    def abort(self, request_id: RequestId) -> None:
        """Drop a request."""
        self._left.pop(request_id, None)

    def _step(self) -> None:
        outputs = []
        token: TokenId = 300 + self.num_tokens % 1000
        for request_id, left in list(self._left.items()):
            finish = FinishReason.LENGTH if left == 1 else None
            outputs.append(Output(request_id, (token,), finish, 0))
            if left == 1:
                del self._left[request_id]
            else:
                self._left[request_id] = left - 1
        self.num_tokens += len(outputs)
        self._events.outputs(self.replica, outputs)
        if self._left:
            asyncio.get_running_loop().call_later(self._pace, self._step)
        else:
            self._running = False


def chat_body(seed: int, max_tokens: int) -> bytes:
    """Return a streamed chat request of about 1 KB."""
    words = random.Random(seed)
    content = ""
    while len(content) < PROMPT_BYTES:
        content += words.choice(WORDS) + " "
    fields = {
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}],
    }
    return json.dumps(fields).encode()


async def read_stream(port: int, bodies: list[bytes]) -> None:
    """Send requests one after another on one connection and drop the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        tail = b""
        while not tail.endswith(_END):
            tail = (tail + await reader.read(1 << 16))[-len(_END) :]
    writer.close()


async def client(port: int, streams: int, requests: int, max_tokens: int) -> None:
    """Run ``streams`` connections with ``requests`` requests each."""
    await asyncio.gather(
        *(
            read_stream(
                port, [chat_body(1000 * place + index, max_tokens) for index in range(requests)]
            )
            for place in range(streams)
        )
    )


async def measure(
    gateway: Gateway, port: int, *, streams: int, requests: int, max_tokens: int
) -> tuple[float, int]:
    """Return this process's CPU seconds for one run of the client, and the tokens sent."""
    link = PacedReplica(
        gateway.traffic, vocab_size=1 << 20, pace=PACE, start_at=streams if requests == 1 else 1
    )
    link.connect()
    gc.collect()
    begun = time.process_time()
    arguments = [sys.executable, __file__, "--client", str(port)]
    arguments += [str(streams), str(requests), str(max_tokens)]
    process = await asyncio.create_subprocess_exec(*arguments)
    assert await process.wait() == 0
    return time.process_time() - begun, link.num_tokens


async def benchmark(model: Path, repetitions: int) -> dict[str, float]:
    """Return the figures, medians in microseconds."""
    text = load_text_model(model)
    outside = Outside(MonotonicClock(), random.Random(0).getrandbits, Registry(GATEWAY_TABLE))
    gateway = build_gateway(
        GatewayConfig(), text=text, names=("model",), keys=Keys(), outside=outside
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    serving = asyncio.create_task(gateway.serve(sock))
    await asyncio.sleep(0)
    per_token, per_request = [], []
    await measure(gateway, port, streams=4, requests=4, max_tokens=4)  # warm up
    for _ in range(repetitions):
        short, short_tokens = await measure(gateway, port, streams=64, requests=1, max_tokens=8)
        long, long_tokens = await measure(gateway, port, streams=64, requests=1, max_tokens=264)
        per_token.append((long - short) / (long_tokens - short_tokens) * 1e6)
        many, _ = await measure(gateway, port, streams=64, requests=10, max_tokens=16)
        per_request.append(many / (64 * 10) * 1e6)
    await gateway.drain(1)
    await serving
    return {
        "cpu_us_per_streamed_token": round(statistics.median(per_token), 2),
        "cpu_us_per_1kb_chat_request_of_16_tokens": round(statistics.median(per_request), 1),
    }


def main() -> None:
    """Run as the benchmark or as its client."""
    if sys.argv[1:2] == ["--client"]:
        asyncio.run(client(*map(int, sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description="CPU cost of a gateway")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--no-uvloop", action="store_true")
    options = parser.parse_args()
    run = asyncio.run
    if not options.no_uvloop:
        with suppress(ImportError):
            import uvloop

            run = uvloop.run
    figures = run(benchmark(options.model, options.repetitions))
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
