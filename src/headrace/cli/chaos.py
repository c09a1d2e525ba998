"""``headrace chaos``: a TCP fault proxy, to try clients, gateways and replicas on."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock
from headrace.errors import UsageError
from headrace.server.child import run_on_loop
from headrace.testing.chaos import NO_FAULTS, FaultProxy, Faults, Towards, parse_endpoint
from headrace.testing.chaos.endpoint import taken_over

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from headrace.testing.chaos import Endpoint, Strike

_SECONDS = {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0}
_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1 << 10, "mib": 1 << 20}
_MAX_QUANTITY = 1e12

_EPILOG = """Times: 50ms, 2s. Bytes: 300, 64KB. They are counted from a connection's beginning.

examples:
  headrace chaos --listen :9000 --upstream :8000 --latency 50ms --jitter 20ms
  headrace chaos --listen :9001 --upstream :8001 --hang-after 2KB --share 0.1 --seed 7
  headrace chaos --take-over /run/user/1000/headrace-7/r0.sock --reset-after 64KB"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace chaos``."""
    parser.description = "Pass TCP or Unix connections on, and do to them what networks do."
    parser.usage = "headrace chaos --listen ADDRESS --upstream ADDRESS [faults]"
    parser.epilog = _EPILOG
    seconds = partial(_quantity, units=_SECONDS, example="50ms")
    num_bytes = partial(_quantity, units=_BYTES, example="64KB")
    where = parser.add_argument_group("where").add_argument
    where("--listen", metavar="ADDRESS", help="HOST:PORT, :PORT or unix:PATH")
    where("--upstream", metavar="ADDRESS", help="whom connections are passed on to")
    where("--take-over", metavar="PATH", help="instead: step before the Unix socket PATH")
    whom = parser.add_argument_group("whom, and when").add_argument
    whom("--share", type=float, default=1.0, metavar="R", help="of the connections (1)")
    sides = ", ".join(Towards)
    whom("--towards", default="client", metavar="SIDE", help=f"which bytes: {sides} (client)")
    whom("--seed", type=int, default=0, metavar="N", help="the same strikes the same ones (0)")
    whom("--begin-after", type=seconds, metavar="S", help="no faults before")
    whom("--end-after", type=seconds, metavar="S", help="no faults from then on")
    slow = parser.add_argument_group("slow or spoilt").add_argument
    slow("--latency", type=seconds, default=0.0, metavar="S", help="added to every byte")
    slow("--jitter", type=seconds, default=0.0, metavar="S", help="up to so much more")
    slow("--bandwidth", type=num_bytes, metavar="BYTES", help="per second")
    slow("--drip", type=num_bytes, metavar="BYTES", help="per second, each by itself")
    slow("--corrupt", type=float, default=0.0, metavar="R", help="share of bytes with a bit over")
    ends = parser.add_argument_group("ends").add_argument
    ends("--refuse", action="store_true", help="reset connections at once")
    ends("--reset-after", type=num_bytes, metavar="N", help="reset both sides")
    ends("--cut-after", type=num_bytes, metavar="N", help="end both sides in good order")
    ends("--hang-after", type=num_bytes, metavar="N", help="let no more through, stay open")
    ends("--half-open", type=num_bytes, metavar="N", help="reset upstream, do not tell the client")


def main(args: argparse.Namespace) -> int:
    """Pass on until told to end."""
    faults = faults_of(args)
    with ExitStack() as stack:
        listening, upstream, shown = _open(args, stack)
        print(f"chaos at {shown} before {upstream}", flush=True)
        return run_on_loop(_run(args, faults, listening, upstream))


def faults_of(args: argparse.Namespace) -> Faults:
    """Return the faults that the flags tell. Raises UsageError."""
    for name in ("share", "corrupt"):
        if not 0 <= vars(args)[name] <= 1:
            raise UsageError(f"--{name} {vars(args)[name]} is no share; use 0 to 1")
    for name in ("bandwidth", "drip"):
        if vars(args)[name] == 0:
            raise UsageError(f"--{name} 0 would stop everything; use --hang-after 0")
    if args.towards not in list(Towards):
        raise UsageError(f"--towards {args.towards!r} is no side; use {', '.join(Towards)}")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} is negative")
    return Faults(
        share=args.share,
        towards=Towards(args.towards),
        refuse=args.refuse,
        latency=args.latency,
        jitter=args.jitter,
        bandwidth=args.bandwidth,
        drip=args.drip,
        corrupt=args.corrupt,
        reset_after=_whole(args.reset_after),
        cut_after=_whole(args.cut_after),
        hang_after=_whole(args.hang_after),
        half_open_after=_whole(args.half_open),
    )


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _quantity(text: str, *, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) * unit > _MAX_QUANTITY:
        raise argparse.ArgumentTypeError(f"{text!r} is none; write it like {example}")
    return float(match[1]) * unit


def _open(args: argparse.Namespace, stack: ExitStack) -> tuple[socket.socket, Endpoint, str]:
    """Return where to listen, whom to connect to, and what to call the former."""
    if args.take_over is not None:
        if args.listen or args.upstream:
            raise UsageError("--take-over names both sides: leave --listen and --upstream out")
        ours, theirs = stack.enter_context(taken_over(Path(args.take_over)))
        return ours, theirs, f"unix:{args.take_over}"
    if not args.listen or not args.upstream:
        raise UsageError("say where with --listen and --upstream, or with --take-over")
    endpoint = parse_endpoint(args.listen)
    listening = stack.enter_context(endpoint.bind())
    if endpoint.path is not None:
        stack.callback(endpoint.path.unlink, missing_ok=True)
    else:
        endpoint = replace(endpoint, port=listening.getsockname()[1])
    return listening, parse_endpoint(args.upstream), str(endpoint)


async def _run(
    args: argparse.Namespace, faults: Faults, listening: socket.socket, upstream: Endpoint
) -> int:
    stop = asyncio.Event()
    proxy = FaultProxy(
        upstream=upstream,
        clock=MonotonicClock(),
        faults=NO_FAULTS if args.begin_after else faults,
        seed=args.seed,
        tell=_print,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.begin_after:
        loop.call_later(args.begin_after, _setter(proxy, faults, "faults begin"))
    if args.end_after:
        loop.call_later(args.end_after, _setter(proxy, NO_FAULTS, "faults end"))
    await proxy.start(listening)
    await stop.wait()
    await proxy.close()
    print(proxy.tally, flush=True)
    return 0


def _setter(proxy: FaultProxy, faults: Faults, words: str) -> Callable[[], None]:
    def set_faults() -> None:
        print(words, flush=True)
        proxy.faults = faults

    return set_faults


def _print(strike: Strike) -> None:
    print(strike, flush=True)
