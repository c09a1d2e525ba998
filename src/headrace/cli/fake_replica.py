"""``headrace fake-replica``: a scripted OpenAI server, to try gateways on."""

from __future__ import annotations

import argparse
import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock
from headrace.errors import UsageError
from headrace.monitoring.logging import LogFormat, LogLevel, configure_logging
from headrace.server.address import bind, url_of
from headrace.server.child import run_on_loop
from headrace.testing.openai_replica import OpenAIReplica, Script

if TYPE_CHECKING:
    import socket

_MS = 1e-3

_EPILOG = """examples:
  headrace fake-replica --port 8001 --itl-ms 20
  headrace fake-replica --port 8002 --die-after-tokens 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace fake-replica``."""
    parser.description = "Answer as OpenAI's API does, the same to the same prompt; fail as told."
    parser.usage = "headrace fake-replica [--port PORT] [how it answers, refuses and fails]"
    parser.epilog = _EPILOG
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=26)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=0, help="port; 0 takes any (0)")
    add("--model", default="fake", metavar="NAME", help="what it serves (fake)")
    add("--server", default="fake", metavar="NAME", help="manners: vllm, sglang, llamacpp, tgi")
    add("--latency-ms", type=float, default=0.0, metavar="MS", help="before an answer begins")
    add("--jitter-ms", type=float, default=0.0, metavar="MS", help="up to so much more")
    add("--itl-ms", type=float, default=0.0, metavar="MS", help="between two tokens of a stream")
    add("--slow-drip", type=float, metavar="BYTES", help="of a stream per second, one by one")
    _add_refusals(parser)
    _add_failures(parser)


def _add_refusals(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("it refuses").add_argument
    add("--status-code", type=int, default=200, metavar="N", help="of every completion (200)")
    add("--fail-first", type=int, default=0, metavar="N", help="so many completions fail")
    add("--fail-rate", type=float, default=0.0, metavar="R", help="and a share of the others")
    add("--fail-status", type=int, default=500, metavar="N", help="with this status (500)")
    add("--busy-retry-after", type=int, metavar="S", help="all get 429 with this Retry-After")
    add("--api-key", default="", metavar="KEY", help="others get 401")
    add("--max-payload", type=int, metavar="N", help="longer bodies get 413")
    add("--health-fail-after", type=int, metavar="N", help="looks at /health that go well")


def _add_failures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("it fails, after N tokens of an answer or at the N-th")

    def tokens(name: str, text: str) -> None:
        group.add_argument(name, type=int, metavar="N", help=text)

    tokens("--die-after-tokens", "the process ends")
    tokens("--hang-after-tokens", "nothing more comes")
    tokens("--truncate-after", "the answer ends without a finish")
    tokens("--reset-after", "the connection is cut")
    tokens("--bad-json-at", "an event is no JSON")
    tokens("--dup-chunk-at", "an event comes twice")
    tokens("--wrong-id-at", "an event has the id of another answer")
    tokens("--crash-on-request", "the N-th completion ends the process")
    group.add_argument("--huge-line", action="store_true", help="300 MB without a line's end")


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
    for flag, status in (("status-code", args.status_code), ("fail-status", args.fail_status)):
        if not 200 <= status <= 599:
            raise UsageError(f"--{flag} {status} is none; use 200 to 599")
    if not 0 <= args.fail_rate <= 1:
        raise UsageError(f"--fail-rate {args.fail_rate} is no share; use 0 to 1")
    if min(args.latency_ms, args.jitter_ms, args.itl_ms, args.fail_first) < 0:
        raise UsageError("--latency-ms, --jitter-ms, --itl-ms and --fail-first are not negative")
    if args.slow_drip is not None and args.slow_drip <= 0:
        raise UsageError("--slow-drip must be over 0; --hang-after-tokens sends nothing")
    return Script(
        model=args.model,
        server=args.server,
        latency=args.latency_ms * _MS,
        jitter=args.jitter_ms * _MS,
        itl=args.itl_ms * _MS,
        drip=args.slow_drip,
        api_key=args.api_key,
        max_body_bytes=args.max_payload,
        status=args.status_code,
        fail_first=args.fail_first,
        fail_rate=args.fail_rate,
        fail_status=args.fail_status,
        die_at_request=args.crash_on_request,
        die_after=args.die_after_tokens,
        hang_after=args.hang_after_tokens,
        truncate_after=args.truncate_after,
        reset_after=args.reset_after,
        bad_json_at=args.bad_json_at,
        repeat_at=args.dup_chunk_at,
        wrong_id_at=args.wrong_id_at,
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
