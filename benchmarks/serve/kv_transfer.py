"""What transfers of KV blocks between replicas are worth, on a real model.

    python benchmarks/serve/kv_transfer.py [MODEL] [--rounds 5] [--json FILE]
        [--parts prefix,drain,roles] [--threads 1]

* **prefix**: a prompt that one replica has computed is asked of the other: time to the first token,
  fetched and computed again.
* **drain**: the replica of a stream under way is drained at once: the longest gap between two of
  its tokens, and the tokens that were computed for it, with its blocks and without.
* **roles**: three replicas, all for everything, and one for prompts with two for decodes: streams
  that decode, and long prompts that come between; times to the first token of those, and between
  the tokens of the streams.

Prompts are random tokens, the same with and without; every turn has its own server. On a machine
where replicas share the processor they also share the time that a transfer or a prompt takes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from headrace.bench.environment import describe_environment
from headrace.monitoring.shapes import Done, DrainOrder, ServerState
from headrace.server.admin.client import AdminClient
from headrace.testing.server_process import running_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEFAULT_MODEL = "smollm2-135m-instruct"
SEED = 11
LENGTHS = (1024, 4096)
DRAIN_PROMPT = 2048
DRAIN_AFTER = 20  # tokens
DRAIN_OUTPUT = 1600  # enough for the drained replica's successor to start meanwhile
STREAMS = 4
SHORT_PROMPT = 64
STREAM_OUTPUT = 160
LONG_PROMPT = 1536
SETTLE_SECONDS = 0.3  # for reports and changes of caches to reach the gateway
SWITCHES = ("on", "off")


OnToken: TypeAlias = "Callable[[int], None]"


def _ignore(_num_tokens: int) -> None:
    """Nobody wants to know."""


@dataclass
class Answer:
    """Times of a stream's tokens, since it was asked."""

    times: list[float] = field(default_factory=list)
    cached: int = 0
    finish: str = ""

    @property
    def gaps(self) -> list[float]:
        """Between two tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class Pool:
    """A server under test."""

    def __init__(self, port: int, admin: AdminClient) -> None:
        self.admin = admin
        self._port = port

    def ask(self, prompt: Sequence[int], max_tokens: int, on_token: OnToken = _ignore) -> Answer:
        """Stream a completion to its end; ``on_token`` hears how many have come."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        body = {
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer, began = Answer(), time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            self._take(json.loads(line[6:]), answer, time.perf_counter() - began)
            on_token(len(answer.times))
        connection.close()
        if answer.finish != "length":
            raise RuntimeError(f"a stream ended with {answer.finish or response.status}")
        return answer

    def _take(self, event: dict[str, Any], answer: Answer, seconds: float) -> None:
        if usage := event.get("usage"):
            answer.cached = usage["prompt_tokens_details"]["cached_tokens"]
        for choice in event.get("choices", ()):
            answer.times.append(seconds)
            answer.finish = choice["finish_reason"] or answer.finish

    def metric(self, name: str) -> float:
        """Sum of a metric over all replicas."""
        lines = self.admin.text("/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


@contextmanager
def pool(args: argparse.Namespace, *flags: str, **settings: str) -> Iterator[Pool]:
    """Start a server with ``flags``; ``settings`` are environment variables."""
    with tempfile.TemporaryDirectory() as directory:
        admin = Path(directory) / "admin.sock"
        words = (args.model, "--admin", str(admin), "--threads", str(args.threads), *flags)
        environment = {**os.environ, **{f"HEADRACE_{k.upper()}": v for k, v in settings.items()}}
        with running_server(*words, environment=environment) as server:
            found = Pool(server.port, AdminClient(admin))
            for _ in range(2):
                found.ask(range(100, 164), 4)
            yield found


def transfer(switch: str) -> dict[str, str]:
    """Settings with transfers on or off."""
    return {"gateway_kv_transfer": "true" if switch == "on" else "false"}


def prefix(args: argparse.Namespace) -> dict[str, Any]:
    """Part 1."""
    figures: dict[str, Any] = {}
    turns = {"gateway_policy": "round_robin"}
    for switch in SWITCHES:
        rng = random.Random(SEED)
        flags = ("--replicas", "2", "--kv-cache-tokens", "16384")
        with pool(args, *flags, **turns, **transfer(switch)) as found:
            for length in LENGTHS:
                first, second, cached = [], [], []
                for _ in range(args.rounds):
                    prompt = tokens(rng, length)
                    first.append(found.ask(prompt, 2).times[0])
                    time.sleep(SETTLE_SECONDS)
                    answer = found.ask(prompt, 2)  # at the other replica
                    second.append(answer.times[0])
                    cached.append(answer.cached)
                    time.sleep(SETTLE_SECONDS)
                figures[f"{length} {switch}"] = {
                    "ttft_cold_ms": milliseconds(first),
                    "ttft_at_the_other_ms": milliseconds(second),
                    "cached_tokens": median(cached),
                }
                print(f"prefix of {length}, transfer {switch}: {figures[f'{length} {switch}']}")
    return figures


def drain(args: argparse.Namespace) -> dict[str, Any]:
    """Part 2."""
    figures: dict[str, Any] = {}
    for switch in SWITCHES:
        rng = random.Random(SEED)
        gaps, typical, computed = [], [], []
        flags = ("--replicas", "2", "--drain-seconds", "0.05", "--kv-cache-tokens", "8192")
        with pool(args, *flags, **transfer(switch)) as found:
            for _ in range(args.rounds):
                answer, again = drained(found, tokens(rng, DRAIN_PROMPT))
                gaps.append(max(answer.gaps[DRAIN_AFTER - 1 :]))
                typical.append(median(answer.gaps))
                computed.append(again)
        figures[switch] = {
            "longest_gap_ms": milliseconds(gaps),
            "median_gap_ms": milliseconds(typical),
            "tokens_computed_again": median(computed),
        }
        print(f"drain, transfer {switch}: {figures[switch]}")
    return figures


def drained(found: Pool, prompt: Sequence[int]) -> tuple[Answer, float]:
    """Drain the replica of a stream when it has some tokens; return the stream and what was
    computed for it after that."""
    counted: list[float] = []

    def go(num_tokens: int) -> None:
        if num_tokens == DRAIN_AFTER:
            counted.append(found.metric("headrace_engine_computed_tokens_total"))
            state = found.admin.get("/state", ServerState)
            busy = next(row.replica for row in state.replicas if row.outstanding)
            found.admin.post("/drain", DrainOrder(replica=busy), Done)

    answer = found.ask(prompt, DRAIN_OUTPUT, go)
    time.sleep(SETTLE_SECONDS)
    again = found.metric("headrace_engine_computed_tokens_total") - counted[0]

    def is_whole() -> bool:
        rows = found.admin.get("/state", ServerState).replicas
        return [row.state for row in rows] == ["ready", "ready"]

    wait_until(is_whole, 120)
    return answer, again


def roles(args: argparse.Namespace) -> dict[str, Any]:
    """Part 3."""
    figures: dict[str, Any] = {}
    kinds = {"mixed": ("--replicas", "3"), "roles": ("--roles", "prefill=1,decode=2")}
    for kind, flags in kinds.items():
        rng = random.Random(SEED)
        gaps: list[float] = []
        ttfts: list[float] = []
        with pool(args, *flags, "--kv-cache-tokens", "16384") as found:
            for _ in range(args.rounds):
                streams, first = mixed_load(found, rng)
                gaps += [gap for stream in streams for gap in stream.gaps]
                ttfts += first
        figures[kind] = {
            "itl_ms": milliseconds(gaps),
            "ttft_of_long_prompts_ms": milliseconds(ttfts),
            "long_prompts": len(ttfts),
        }
        print(f"{kind}: {figures[kind]}")
    return figures


def mixed_load(found: Pool, rng: random.Random) -> tuple[list[Answer], list[float]]:
    """Let streams decode, and ask long prompts one after the other meanwhile."""
    with ThreadPoolExecutor(STREAMS) as threads:
        streams = [
            threads.submit(found.ask, tokens(rng, SHORT_PROMPT), STREAM_OUTPUT)
            for _ in range(STREAMS)
        ]
        first = []
        while not all(stream.done() for stream in streams):
            first.append(found.ask(tokens(rng, LONG_PROMPT), 4).times[0])
        return [stream.result() for stream in streams], first


def tokens(rng: random.Random, length: int) -> list[int]:
    """Return a prompt that nobody asked before."""
    return [rng.randrange(1000, 40000) for _ in range(length)]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles."""
    ordered = sorted(seconds)
    return {
        f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1)
        for share in (50, 95, 99)
    }


PARTS = {"prefix": prefix, "drain": drain, "roles": roles}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    words = ["python benchmarks/serve/kv_transfer.py", *(w for w in sys.argv[1:] if "/" not in w)]
    results: dict[str, Any] = {"environment": msgspec.to_builtins(describe_environment(words))}
    for name in args.parts.split(","):
        results[name] = PARTS[name](args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
