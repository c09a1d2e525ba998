"""Servers with canned answers that also say what routers ask them: all in one process.

Routers ask a server at their start, and some for each request: whether it is well, what it serves,
and (vllm-router's prefix-aware policy) the token ids of a chat, for which four bytes of it stand
here, made into numbers, so that chats that begin alike have ids that begin alike.

Run by gateway_peers.py with the number of servers: prints their ports on one line and serves until
killed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "micro"))
from passthrough_cost import Upstream, reply

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_PER_TOKEN = 4
SPREAD = 2654435761  # Knuth's multiplier: numbers that look like token ids
MANY_CHATS = 1024

_MODEL = {"model_path": "m", "served_model_name": "m", "tokenizer_path": "m"}
_INFO = reply(
    json.dumps(
        {**_MODEL, "is_generation": True, "version": "0.5.0", "tp_size": 1, "dp_size": 1}
    ).encode()
)
PROBES = {
    b"/health": reply(b'{"status":"ok"}'),
    b"/v1/models": reply(
        b'{"object":"list","data":[{"id":"m","object":"model","created":1700000000,"owned_by":"m"}]}'
    ),
    b"/version": reply(b'{"version":"0.11.0"}'),
    b"/server_info": _INFO,
    b"/get_server_info": _INFO,
    b"/model_info": _INFO,
    b"/get_model_info": _INFO,
}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def answer_probe(head: bytes, body: bytes) -> bytes:
    """Answer what is not a chat; empty for what is not HTTP/1.1 (a probe for gRPC)."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if words[-1] != b"HTTP/1.1":
        return b""
    if words[1] == b"/v1/chat/completions/render":
        return rendered(body)
    return PROBES.get(words[1], NOT_FOUND)


@lru_cache(maxsize=MANY_CHATS)
def rendered(body: bytes) -> bytes:
    """Return token ids that might be the chat's; remembered, since the benchmark repeats itself."""
    chat = body[max(0, body.find(b'"messages"')) :]
    whole = len(chat) // BYTES_PER_TOKEN * BYTES_PER_TOKEN
    words = np.frombuffer(chat[:whole], np.uint32).astype(np.uint64)
    ids = ((words * SPREAD & 0xFFFFFFFF) >> 16).tolist()
    fields = {"request_id": "r0", "token_ids": ids, "sampling_params": {}, "model": "m"}
    return reply(json.dumps(fields).encode())


@contextmanager
def upstreams(number: int) -> Iterator[list[int]]:
    """Ports of so many servers, on the processors that the caller runs on."""
    command = [sys.executable, __file__, str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


async def serve(number: int) -> None:
    """Listen on free ports, print them, and serve until killed."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Upstream(answer_probe), "127.0.0.1", 0, backlog=1024)
        for _ in range(number)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
