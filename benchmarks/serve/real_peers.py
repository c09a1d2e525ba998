"""``headrace gateway`` before two real llama.cpp servers, one of which is killed under load.

Clients ask one after another, streams and whole answers in turn, with their own prompts at
temperature 0. At half time one server is killed. Counted is what clients saw: answers, streams
that were told of the loss (they had begun at the killed server), and anything else, which must
not be. Every answer's text is compared with the first answer to that prompt.

    python benchmarks/serve/real_peers.py --llama-server PATH --gguf PATH [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from processes import Server, ServerSpec

from headrace.bench.environment import describe_environment
from headrace.testing.server_process import running_server

KILL_AT = 0.5  # of the time
MAX_TOKENS = 24
PROMPTS = (
    "Name three rivers.",
    "What is a water wheel?",
    "Write one sentence about mills.",
    "What do bakers need?",
    "How does flour come about?",
    "Describe a stone bridge.",
)


@dataclass
class Seen:
    """What clients saw."""

    streams: int = 0
    whole: int = 0
    told: int = 0  # streams that broke off and said so
    wrong: list[str] = field(default_factory=list)  # what must not be
    texts: dict[str, set[str]] = field(default_factory=dict)
    ttfts: list[float] = field(default_factory=list)  # seconds, of streams
    ended_at: list[float] = field(default_factory=list)  # of answers that ended well
    after_kill: int = 0  # that began after the kill and ended well


async def ask(port: int, prompt: str, *, stream: bool) -> tuple[int, bytes, float]:
    """Return (status, body without chunk framing, seconds to the first body byte)."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": stream,
        }
    ).encode()
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status, first = int(head.split()[1]), time.monotonic() - begun
        if b"content-length: " in head:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return status, await reader.readexactly(length), first
        answer = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer += (await reader.readexactly(size + 2))[:-2]
        return status, answer, first
    finally:
        writer.close()


def stream_text(answer: bytes) -> str | None:
    """Return a stream's text; None if it says that it broke off. Raises ValueError if neither."""
    *events, done, rest = answer.split(b"\n\n")
    if done != b"data: [DONE]" or rest:
        raise ValueError(f"no [DONE] at the end: {answer[-200:]!r}")
    contents = [json.loads(event.removeprefix(b"data: ")) for event in events]
    finishes = [c["finish_reason"] for each in contents for c in each.get("choices", [])]
    if "error" in contents[-1]:
        if any(finishes) or contents[-1]["error"]["code"] != "worker_lost":
            raise ValueError(f"an odd end: {answer[-400:]!r}")
        return None
    if not any(finishes):
        raise ValueError("no finish")
    deltas = [c["delta"] for each in contents for c in each.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


async def one(port: int, seen: Seen, prompt: str, *, stream: bool) -> None:
    """Ask once and book what comes."""
    try:
        status, answer, first = await ask(port, prompt, stream=stream)
        if status != 200:
            raise ValueError(f"status {status}: {answer[:300]!r}")
        if not stream:
            text = json.loads(answer)["choices"][0]["message"]["content"]
            seen.whole += 1
        else:
            told = stream_text(answer)
            if told is None:
                seen.told += 1
                return
            text = told
            seen.streams += 1
            seen.ttfts.append(first)
    except (ValueError, OSError, asyncio.IncompleteReadError) as error:
        seen.wrong.append(f"{'stream' if stream else 'whole'}: {error}")
        return
    seen.ended_at.append(time.monotonic())
    seen.texts.setdefault(prompt, set()).add(text)


async def client(port: int, seen: Seen, place: int, until: float, killed: asyncio.Event) -> None:
    """Ask again and again."""
    number = place
    while time.monotonic() < until:
        was_killed, before = killed.is_set(), len(seen.ended_at)
        await one(port, seen, PROMPTS[number % len(PROMPTS)], stream=number % 2 == 0)
        seen.after_kill += was_killed and len(seen.ended_at) > before
        number += 1


async def load(port: int, victim: Server, clients: int, seconds: float) -> tuple[Seen, float]:
    """Run the clients, kill a server at half time; return what was seen and the longest gap."""
    seen, killed = Seen(), asyncio.Event()
    begun = time.monotonic()

    async def kill() -> None:
        await asyncio.sleep(seconds * KILL_AT)
        victim.kill()
        killed.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        for place in range(clients):
            group.create_task(client(port, seen, place, begun + seconds, killed))
    times = sorted(seen.ended_at)
    gaps = [after - before for before, after in pairwise(times)]
    return seen, max(gaps, default=0.0)


def llama(binary: str, gguf: str, port: int) -> ServerSpec:
    """One llama.cpp server with a thread and eight slots."""
    command = [binary, "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "--jinja"]
    command += ["-t", "1", "-tb", "1", "--no-webui", "-np", "8", "-c", "8192"]
    return ServerSpec(name=f"llama.cpp {port}", command=command, port=port)


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description="a gateway before real servers")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--first-port", type=int, default=8170)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        specs = [
            llama(options.llama_server, options.gguf, options.first_port + i) for i in range(2)
        ]
        servers = [
            stack.enter_context(Server(spec, directory / f"{spec.port}.log")) for spec in specs
        ]
        named = [word for spec in specs for word in ("--replica", spec.base_url)]
        gateway = stack.enter_context(
            running_server(*named, "--policy", "least_requests", command="gateway")
        )
        time.sleep(1)  # both are looked at
        seen, gap = asyncio.run(load(gateway.port, servers[0], options.clients, options.seconds))
        errors = gateway.errors
    report = {
        "clients": options.clients,
        "seconds": options.seconds,
        "streams": seen.streams,
        "whole_answers": seen.whole,
        "streams_told_of_the_loss": seen.told,
        "wrong": seen.wrong,
        "answers_begun_after_the_kill": seen.after_kill,
        "longest_time_without_an_answer": round(gap, 3),
        "ttft_p50": round(statistics.median(seen.ttfts), 4),
        "texts_per_prompt": sorted(len(texts) for texts in seen.texts.values()),
        "environment": asdict(describe_environment([Path(word).name for word in sys.argv])),
    }
    print(json.dumps(report, indent=2))
    print(errors)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
