"""CPU time of a gateway that passes requests through: per whole answer, and per streamed event.

``headrace gateway`` runs as it is shipped, with a key file's checks off and everything else on:
routing with the prefix index, retries, breaker, metrics, journal. Two upstreams and the client are
other processes. What is counted is the gateway process's own user and system time (/proc), which
is honest where cores are shared; the rate it would have on a core of its own is the inverse.

    python benchmarks/micro/passthrough_cost.py [--json FILE] [--repetitions N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop

from headrace.bench.environment import describe_environment
from headrace.testing.server_process import running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACE = 0.02  # seconds between two events of a stream
NUM_UPSTREAMS = 2
JSON_CONNECTIONS = 16
STREAMS = 64
WORDS = ("the", "water", "of", "a", "mill", "runs", "in", "its", "race", "and", "wheel", "day")
_TICKS = os.sysconf("SC_CLK_TCK")
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"

_WHOLE = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The Rhine, the Nile, the Amazon."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 240, "completion_tokens": 12, "total_tokens": 252},
    }
).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(content: str, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk"}
    body = {**head, "created": 1700000000, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


EVENT = _chunk(_event(" river", None))
LAST = _chunk(_event("", "stop")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def reply(body: bytes) -> bytes:
    """Return a whole answer of JSON."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_WHOLE_REPLY = reply(_WHOLE)
_CHAT = b"POST /v1/chat/completions HTTP/"
_STREAMED = (b'"stream": true', b'"stream":true')


def list_models(_head: bytes, _body: bytes) -> bytes:
    """Answer what is not a chat, whatever it is."""
    return reply(b'{"object":"list","data":[{"id":"m"}]}')


class Upstream(asyncio.Protocol):
    """A server with canned answers: as little work as there can be.

    ``other`` answers what is not a chat; where it has nothing to say the connection is closed.
    """

    def __init__(self, other: Callable[[bytes, bytes], bytes] = list_models) -> None:
        self._other = other
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length or 0):
            return
        self._buffer = b""
        if not head.startswith(_CHAT):
            self._answer(self._other(head, body))
        elif any(words in body for words in _STREAMED):
            fields = json.loads(body)
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            self._send(fields.get("max_tokens") or fields["max_completion_tokens"])
        else:
            self._transport.write(_WHOLE_REPLY)

    def _answer(self, answer: bytes) -> None:
        self._transport.write(answer)
        if not answer:
            self._transport.close()

    def _send(self, left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(EVENT if left else LAST)
        if left:
            asyncio.get_running_loop().call_later(PACE, self._send, left - 1)


async def serve_upstream() -> None:
    """Listen, print the port, and serve until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def request_bytes(seed: int, num_bytes: int, *, max_tokens: int | None) -> bytes:
    """Return a chat request whose prompt has about so many bytes."""
    words = random.Random(seed)
    content = ""
    while len(content) < num_bytes:
        content += words.choice(WORDS) + " "
    fields: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": content}]}
    if max_tokens is not None:
        fields |= {"stream": True, "max_tokens": max_tokens}
    body = json.dumps(fields).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )


async def talk(port: int, requests: list[bytes], *, streamed: bool) -> None:
    """Send requests one after another on one connection and drop the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        writer.write(request)
        if streamed:
            tail = b""
            while not tail.endswith(_END):
                tail = (tail + await reader.read(1 << 16))[-len(_END) :]
        else:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
    writer.close()


async def client(port: int, connections: int, requests: int, size: int, tokens: int) -> None:
    """Load the gateway; ``tokens`` < 0: whole answers."""
    limit = None if tokens < 0 else tokens
    bodies = [request_bytes(seed, size, max_tokens=limit) for seed in range(64)]
    await asyncio.gather(
        *(
            talk(
                port,
                [bodies[(place + i) % len(bodies)] for i in range(requests)],
                streamed=tokens >= 0,
            )
            for place in range(connections)
        )
    )


@contextmanager
def upstream() -> Iterator[str]:
    """An upstream's URL."""
    command = [sys.executable, __file__, "--upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Load:
    """A running gateway, and what a run of the client costs it."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port

    def run(
        self, *, connections: int, requests: int, size: int, tokens: int
    ) -> tuple[float, float]:
        """Return (CPU seconds of the gateway, wall seconds) of one run."""
        numbers = (self._port, connections, requests, size, tokens)
        command = [sys.executable, __file__, "--client", *map(str, numbers)]
        before, begun = cpu_seconds(self._pid), time.monotonic()
        subprocess.run(command, check=True, timeout=300)
        return cpu_seconds(self._pid) - before, time.monotonic() - begun

    def per_request(self, size: int, requests: int) -> tuple[float, float]:
        """Return (CPU us, wall requests a second) of whole answers."""
        cpu, wall = self.run(connections=JSON_CONNECTIONS, requests=requests, size=size, tokens=-1)
        number = JSON_CONNECTIONS * requests
        return cpu / number * 1e6, number / wall

    def per_event(self) -> float:
        """Return CPU us of one paced event: long streams less short ones."""
        short, _ = self.run(connections=STREAMS, requests=1, size=1024, tokens=10)
        long, _ = self.run(connections=STREAMS, requests=1, size=1024, tokens=410)
        return (long - short) / (STREAMS * 400) * 1e6


def benchmark(policy: str, repetitions: int) -> dict[str, float]:
    """Return the figures, medians."""
    with ExitStack() as stack:
        urls = [stack.enter_context(upstream()) for _ in range(NUM_UPSTREAMS)]
        named = [word for url in urls for word in ("--replica", url)]
        server = stack.enter_context(running_server(*named, "--policy", policy, command="gateway"))
        load = Load(server.children()["gateway"], server.port)
        load.per_request(1024, 200)  # warm up
        rows: dict[str, list[float]] = {}
        for _ in range(repetitions):
            for name, size, requests in (("1kb", 1024, 1500), ("32kb", 32 * 1024, 400)):
                cpu, rate = load.per_request(size, requests)
                rows.setdefault(f"cpu_us_per_request_{name}", []).append(cpu)
                rows.setdefault(f"wall_requests_per_second_{name}", []).append(rate)
            rows.setdefault("cpu_us_per_paced_event", []).append(load.per_event())
        result = {name: round(statistics.median(values), 1) for name, values in rows.items()}
        for name in ("1kb", "32kb"):
            cpu = result[f"cpu_us_per_request_{name}"]
            result[f"requests_per_second_of_a_core_{name}"] = round(1e6 / cpu)
        return result


def main() -> None:
    """Run as the benchmark, as an upstream or as the client."""
    if sys.argv[1:2] == ["--upstream"]:
        uvloop.run(serve_upstream())
        return
    if sys.argv[1:2] == ["--client"]:
        uvloop.run(client(*map(int, sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description="CPU cost of passing requests through")
    parser.add_argument("--policy", default="predicted_ttft")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = benchmark(options.policy, options.repetitions)
    environment = asdict(describe_environment())
    report = {"policy": options.policy, **figures, "environment": environment}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
