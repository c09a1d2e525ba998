"""The ``bench`` sub-command: flags in, table and JSON out, an exit code.

0: every request went well; 1: some failed, or the server refuses; 2: the command line is wrong;
3: no server there.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.bench import progress
from headrace.bench.config import (
    Arrivals,
    BenchConfig,
    ClosedLoop,
    Endpoint,
    Goodput,
    JsonValue,
    OpenLoop,
    Target,
)
from headrace.bench.http import parse_base_url
from headrace.bench.report import to_json, to_table
from headrace.errors import StartError, UsageError
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.bench.report import Report

EXIT_FAILED = 1
DEFAULT_BASE_URL = "http://127.0.0.1:8000"
SUMMARY = "load an OpenAI-compatible endpoint and report latencies and throughput"
EXAMPLES = """\
examples:
  headrace bench --concurrency 32 --requests 96 --input-len 128 --output-len 64
  headrace bench --base-url http://127.0.0.1:8080 --rate 4 --goodput ttft:500,itl:50 --json r.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Defaults that come from the environment; whoever mounts the command reads it."""

    base_url: str | None = None  # OPENAI_BASE_URL
    api_key: str | None = None  # OPENAI_API_KEY


NO_DEFAULTS = Defaults()


def add_arguments(parser: argparse.ArgumentParser, defaults: Defaults = NO_DEFAULTS) -> None:
    """Add this command's flags, its description and its examples to ``parser``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = SUMMARY
    parser.epilog = EXAMPLES
    parser.usage = "headrace bench [--base-url URL] [--concurrency N | --rate R] [flags]"
    add = parser.add_argument
    url = defaults.base_url or DEFAULT_BASE_URL
    add("--base-url", default=url, metavar="URL", help="the server, with or without /v1")
    add("--api-key", default=defaults.api_key, metavar="KEY", help="(or OPENAI_API_KEY)")
    add("--model", metavar="NAME", help="default: the first that the server lists")
    kinds = [kind.value for kind in Endpoint]
    add("--endpoint", choices=kinds, default=Endpoint.COMPLETIONS.value)
    add("--no-stream", action="store_true", help="ask for whole answers")
    add("--concurrency", type=_count, metavar="N", help="closed loop, N at a time (default: 8)")
    add("--rate", type=_positive, metavar="R", help="open loop, R requests a second, Poisson")
    add("--constant", action="store_true", help="with --rate: evenly spaced arrivals")
    add("--requests", type=_count, default=64, metavar="N", help="how many (default: 64)")
    add("--warmup", type=_natural, default=2, metavar="N", help="uncounted, first (default: 2)")
    add("--input-len", type=_count, default=128, metavar="TOKENS", help="(default: 128)")
    add("--output-len", type=_count, default=64, metavar="TOKENS", help="(default: 64)")
    add("--prompts", metavar="FILE", help='JSON lines: {"prompt": ..} or {"messages": ..}')
    add("--tokenizer", metavar="FILE", help="a tokenizer.json: makes --input-len exact")
    add("--no-ignore-eos", action="store_true", help="let answers end by themselves")
    add("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    add("--extra-body", type=_json_object, default={}, metavar="JSON", help="more body fields")
    add("--cancel", type=_share, default=0.0, metavar="SHARE", help="cut off mid-stream, e.g. 0.1")
    add("--goodput", type=_goodput, metavar="LIMITS", help="ms, e.g. ttft:500,itl:50,e2e:9000")
    add("--ttft-ms", type=_positive, metavar="MS", help="ask for it, and measure goodput by it")
    add("--itl-ms", type=_positive, metavar="MS", help="the same for the mean between two tokens")
    add("--deadline-ms", type=_positive, metavar="MS", help="the same for the whole answer")
    add("--class", dest="priority", choices=list(PriorityClass), help="(x-headrace-class)")
    add("--tenant", type=_tenant, metavar="NAME", help="where the server believes it")
    add("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default: 0)")
    add("--timeout", type=_positive, default=600.0, metavar="S", help="a request (default: 600)")
    add("--keep-alive", action="store_true", help="reuse connections (default: one a request)")
    add("--max-in-flight", type=_count, default=4096, metavar="N", help="(default: 4096)")
    add("--json", metavar="FILE", help="write the report there; - is standard output")


def main(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    try:
        config = config_from(args)
        report = run_with_progress(config)
    except StartError as error:
        print(f"headrace bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("headrace bench: interrupted, no report", file=sys.stderr)
        return EXIT_FAILED
    return _publish(report, args.json)


def config_from(args: argparse.Namespace) -> BenchConfig:
    """Build the configuration. Raises UsageError."""
    try:
        parse_base_url(args.base_url)
    except ValueError as error:
        raise UsageError(f"--base-url: {error}") from error
    return BenchConfig(
        target=Target(
            base_url=args.base_url,
            api_key=args.api_key,
            keep_alive=args.keep_alive,
            request_timeout=args.timeout,
            headers=_headers(args),
        ),
        model=args.model,
        endpoint=Endpoint(args.endpoint),
        stream=not args.no_stream,
        arrivals=_arrivals(args),
        requests=args.requests,
        input_tokens=args.input_len,
        output_tokens=args.output_len,
        prompts_path=args.prompts,
        tokenizer_path=args.tokenizer,
        ignore_eos=not args.no_ignore_eos,
        temperature=args.temperature,
        extra_body=args.extra_body,
        cancel_share=args.cancel,
        warmup=args.warmup,
        seed=args.seed,
        goodput=args.goodput or _asked(args),
        max_in_flight=args.max_in_flight,
    )


def run_with_progress(config: BenchConfig) -> Report:
    """Run on the fastest event loop there is, with a bar if standard error is a terminal."""
    from headrace.bench.runner import run  # late: --help needs no tokenizer library

    bar = progress.for_stream(sys.stderr)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(run(config, progress=bar))
    finally:
        bar.close()


def _publish(report: Report, path: str | None) -> int:
    table = to_table(report)
    if path == "-":
        print(table, file=sys.stderr)
        sys.stdout.buffer.write(to_json(report))
    else:
        print(table)
        if path is not None:
            try:
                Path(path).write_bytes(to_json(report))
            except OSError as error:
                print(f"headrace bench: --json {path}: {error.strerror}", file=sys.stderr)
                return EXIT_FAILED
    return EXIT_FAILED if report.summary.failed else 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


def _arrivals(args: argparse.Namespace) -> Arrivals:
    if args.rate is None:
        if args.constant:
            raise UsageError("--constant goes with --rate")
        return ClosedLoop(concurrency=args.concurrency or 8)
    if args.concurrency is not None:
        raise UsageError("--rate (open loop) and --concurrency (closed loop) exclude each other")
    return OpenLoop(rate=args.rate, constant=args.constant)


def _headers(args: argparse.Namespace) -> Mapping[str, str]:
    """Return what is asked of time, and for whom. Servers other than headrace ignore it."""
    values = {
        "x-headrace-class": args.priority,
        "x-headrace-tenant": args.tenant,
        "x-headrace-ttft-ms": args.ttft_ms,
        "x-headrace-itl-ms": args.itl_ms,
        "x-headrace-deadline-ms": args.deadline_ms,
    }
    return {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }


def _asked(args: argparse.Namespace) -> Goodput | None:
    """What is asked for is what is measured."""
    limits = Goodput(ttft_ms=args.ttft_ms, itl_ms=args.itl_ms, e2e_ms=args.deadline_ms)
    return None if limits == Goodput() else limits


def _tenant(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 64 letters, digits, '.', '_', '-'")
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not over 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _goodput(text: str) -> Goodput:
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition(":")
        if name not in ("ttft", "itl", "e2e"):
            raise argparse.ArgumentTypeError(f"{part!r} is none of ttft:MS, itl:MS, e2e:MS")
        limits[name] = _positive(value)
    return Goodput(ttft_ms=limits.get("ttft"), itl_ms=limits.get("itl"), e2e_ms=limits.get("e2e"))


def _json_object(text: str) -> Mapping[str, JsonValue]:
    try:
        value = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error
    return value  # type: ignore[return-value]  # decoded JSON holds JSON values
