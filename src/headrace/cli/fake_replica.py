"""``headrace fake-replica``: a scripted OpenAI server, to try gateways on."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock
from headrace.errors import UsageError
from headrace.monitoring.logging import LogFormat, LogLevel, configure_logging
from headrace.server.address import bind, url_of
from headrace.server.child import run_on_loop
from headrace.testing.openai_replica import OpenAIReplica, Script

if TYPE_CHECKING:
    import argparse
    import socket

_MS = 1e-3

_EPILOG = """Its answers depend on the prompt alone, so two of them say the same.

examples:
  headrace fake-replica --port 8001 --itl-ms 20
  headrace fake-replica --port 8002 --die-after-tokens 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace fake-replica``."""
    parser.description = "Answer as an OpenAI server would, without a model; fail as told."
    parser.epilog = _EPILOG
    add = parser.add_argument

    def tokens(name: str, text: str) -> None:
        add(name, type=int, metavar="N", help=f"after so many tokens of an answer: {text}")

    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=0, help="port; 0 takes any (0)")
    add("--model", default="fake", metavar="NAME", help="what it serves (fake)")
    add("--latency-ms", type=float, default=0.0, metavar="MS", help="before an answer begins")
    add("--itl-ms", type=float, default=0.0, metavar="MS", help="between two tokens of a stream")
    add("--status-code", type=int, default=200, metavar="N", help="of every completion (200)")
    add("--fail-first", type=int, default=0, metavar="N", help="completions that get status 500")
    add("--fail-rate", type=float, default=0.0, metavar="R", help="share of the others that do")
    tokens("--die-after-tokens", "end the process")
    tokens("--hang-after-tokens", "send nothing more")
    tokens("--truncate-after", "end the answer without a finish")
    tokens("--reset-after", "cut the connection")
    tokens("--bad-json-at", "one event that is no JSON")
    tokens("--dup-chunk-at", "one event twice")
    add("--huge-line", action="store_true", help="send 300 MB without a line's end")
    add("--busy-retry-after", type=int, metavar="S", help="answer 429 with this Retry-After")
    add("--health-fail-after", type=int, metavar="N", help="looks at /health that go well")


def main(args: argparse.Namespace) -> int:
    """Answer until told to end."""
    configure_logging(process="fake", format=LogFormat.TEXT, level=LogLevel.WARNING)
    script = script_of(args)
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port} is no port; use 0 to 65535")
    with bind(args.host, args.port) as listening:
        print(f"fake replica of {script.model} at {url_of(listening)}", flush=True)
        return run_on_loop(_run(script, listening))


def script_of(args: argparse.Namespace) -> Script:
    """Return the script that the flags tell. Raises UsageError."""
    if not 200 <= args.status_code <= 599:
        raise UsageError(f"--status-code {args.status_code} is none; use 200 to 599")
    if not 0 <= args.fail_rate <= 1:
        raise UsageError(f"--fail-rate {args.fail_rate} is no share; use 0 to 1")
    if min(args.latency_ms, args.itl_ms, args.fail_first) < 0:
        raise UsageError("--latency-ms, --itl-ms and --fail-first cannot be negative")
    return Script(
        model=args.model,
        latency=args.latency_ms * _MS,
        itl=args.itl_ms * _MS,
        status=args.status_code,
        fail_first=args.fail_first,
        fail_rate=args.fail_rate,
        die_after=args.die_after_tokens,
        hang_after=args.hang_after_tokens,
        truncate_after=args.truncate_after,
        reset_after=args.reset_after,
        bad_json_at=args.bad_json_at,
        repeat_at=args.dup_chunk_at,
        huge_line=args.huge_line,
        busy_retry_after=args.busy_retry_after,
        health_fail_after=args.health_fail_after,
    )


async def _run(script: Script, listening: socket.socket) -> int:
    replica = OpenAIReplica(script, clock=MonotonicClock())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.close)
    await replica.run(listening)
    return 0
