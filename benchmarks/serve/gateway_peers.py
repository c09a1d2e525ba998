"""What proxying costs and delays: our gateway and what people run instead, in one run.

All stand before the same four servers with canned answers. The router has a processor to itself;
servers and client share another. What counts is the processor time (user and system) of the
router's whole process tree, from /proc: 1 s / that of a request is what a core of its own takes.
Every answer is checked, and a run with a wrong one is not counted. Workloads:

- 1 KB and 32 KB: whole answers of 300 B, 64 connections that ask again at once, 256 different
  prompts; of 32 KB 64 in 16 groups, each with half of the prompt in common;
- streams: 256 at a time, 17 events of each, 20 ms apart; the slope is what an event more costs,
  and with less than one read per event some were held back and came together;
- time to the first event: 50 streams/s, whatever comes back (open loop).

LiteLLM is asked for less (8 connections, 5 streams/s). Ours runs with a key file and all else that
is on by default. ``direct`` is the client at a server itself: what is added counts from there.

    python benchmarks/serve/gateway_peers.py --vllm-router ENV/bin/vllm-router \\
      --sglang-router ENV/bin/sglang-router --litellm ENV2/bin/litellm --json FILE --markdown FILE
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import gateway_routers as routers
import msgspec
from gateway_report import Report, Turn, judge, markdown, medians_of
from gateway_routers import DIRECT, ROUTERS, Load, Program, Router, Site
from gateway_upstream import upstreams
from processes import Server, ServerFailed, end_on_sigterm, without_paths
from rate import WORDS, chat_request, create_key
from rate_client import PATIENCE_S, Job, Outcome

sys.path.insert(0, str(Path(__file__).parents[1] / "micro"))
from passthrough_cost import cpu_seconds

from headrace.bench.environment import describe_environment
from headrace.testing.server_process import command_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NUM_SERVERS = 4
EVENTS = 17  # sent one by one: 16 words, then the last with the end
LONG_EVENTS = 97  # LiteLLM refuses a hundred that are the same
STREAM_S = 0.34  # of 17 events: within that time the streams begin, so that they are not in step
TTFT_CONNECTIONS = 64
TTFT_RUNS = 2.0  # times as long as the others: 50 requests/s are few
SIZES = {"1kb": (1024, 256, 256), "32kb": (32 * 1024, 64, 16)}  # bytes, prompts, groups

WARM_UP_S = 1.0
WARM_UP_STREAMS = 8
WARM_UP_LIMIT_S = 60.0
PAUSE_S = 0.2
CLIENT_LIMIT_S = PATIENCE_S + 60.0
CLIENT = Path(__file__).with_name("rate_client.py")
ANSWER = b"Amazon"  # once in a whole answer
WORD = b" river"  # once in each event of a stream but the last


class WrongAnswers(Exception):
    """A run with answers that are none."""


def prompts(size: str) -> list[str]:
    """Return the prompts of a workload; those of a group begin with the same half."""
    num_bytes, number, groups = SIZES[size]
    rng = random.Random(size)
    share = num_bytes // 2 if groups < number else 0
    heads = [_text(rng, share) for _ in range(groups)]
    return [heads[place % groups] + _text(rng, num_bytes - share) for place in range(number)]


def _text(rng: random.Random, num_bytes: int) -> str:
    words = rng.choices(WORDS, k=num_bytes)  # more than enough
    return " ".join(words)[:num_bytes]


def chats(key: str, texts: list[str], *, events: int | None = None) -> list[bytes]:
    """Return requests for whole answers, or for streams of so many events."""
    more = {} if events is None else {"stream": True, "max_tokens": events - 1}
    return [
        chat_request(key, {"model": "m", "messages": [{"role": "user", "content": text}], **more})
        for text in texts
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run of the client cost the router, seconds of processor time, and what came."""

    tree: float
    gateway: float  # ours: the gateway process alone
    outcome: Outcome

    def figures(self, name: str, unit: float) -> dict[str, float]:
        """Return microseconds of an answer's ``unit``-th part, by what is counted."""
        parts = self.outcome.answered * unit / 1e6
        tree = {f"cpu_us_{name}": self.tree / parts} if self.tree else {}
        gateway = {f"gateway_cpu_us_{name}": self.gateway / parts} if self.gateway else {}
        return tree | gateway


class Session:
    """A router that runs (None: a server itself), asked by the client."""

    def __init__(self, server: Server | None, port: int, key: str) -> None:
        self._server = server
        self._port = port
        self._requests = {size: chats(key, prompts(size)) for size in SIZES}
        self._streams = {
            events: chats(key, prompts("1kb"), events=events) for events in (EVENTS, LONG_EVENTS)
        }

    def whole(self, size: str, *, connections: int, seconds: float) -> Spent:
        """Ask for whole answers, as fast as they come."""
        job = Job(
            port=self._port,
            connections=connections,
            rate=0.0,
            seconds=seconds,
            requests=self._requests[size],
            streamed=False,
            expected=ANSWER,
        )
        return self._run(job)

    def streams(self, events: int, *, connections: int, seconds: float, rate: float = 0.0) -> Spent:
        """Ask for streams, at a rate or again as soon as they end."""
        job = Job(
            port=self._port,
            connections=connections,
            rate=rate,
            seconds=seconds,
            requests=self._streams[events],
            streamed=True,
            ramp_s=STREAM_S,
            expected=WORD,
            times=events - 1,
        )
        return self._run(job)

    def _run(self, job: Job) -> Spent:
        """Raises WrongAnswers."""
        before = self._cpu()
        done = subprocess.run(
            [sys.executable, str(CLIENT)],
            input=msgspec.json.encode(job),
            capture_output=True,
            check=True,
            timeout=job.seconds + CLIENT_LIMIT_S,
        )
        after = self._cpu()
        outcome = msgspec.json.decode(done.stdout, type=Outcome)
        if outcome.errors or not outcome.answered:
            raise WrongAnswers(
                f"{outcome.errors} of {outcome.sent} wrong, first: {outcome.first_error[:300]!r}"
            )
        return Spent(tree=after[0] - before[0], gateway=after[1] - before[1], outcome=outcome)

    def _cpu(self) -> tuple[float, float]:
        """Return seconds of the whole tree, and of our gateway process in it, so far."""
        if self._server is None:
            return 0.0, 0.0
        _, *others = tree = self._server.tree()
        seconds = {pid: cpu_seconds(pid) for pid in tree}
        return sum(seconds.values()), sum(
            seconds[pid] for pid in others if command_of(pid) == "gateway"
        )


def warm_up(session: Session, router: Router, seconds: float) -> None:
    """Ask until all is answered right. Raises WrongAnswers after a while."""
    deadline = time.monotonic() + WARM_UP_LIMIT_S
    while True:
        try:
            session.whole("1kb", connections=router.load.json_connections, seconds=seconds)
            session.streams(EVENTS, connections=WARM_UP_STREAMS, seconds=seconds)
            return
        except WrongAnswers:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


Figures: TypeAlias = "dict[str, float]"


def whole_answers(size: str, session: Session, load: Load, seconds: float) -> Figures:
    """Measure whole answers to prompts of a size."""
    spent = session.whole(size, connections=load.json_connections, seconds=seconds)
    wall = spent.outcome.answered / spent.outcome.seconds
    return {**spent.figures(size, 1), f"wall_per_s_{size}": wall}


def events(session: Session, load: Load, seconds: float) -> Figures:
    """Measure what an event costs: of short streams, and one more of long ones."""
    short = session.streams(EVENTS, connections=load.streams, seconds=seconds)
    long = session.streams(LONG_EVENTS, connections=load.streams, seconds=seconds)
    base = short.figures("slope", 1)
    slopes = {
        name: (value - base[name]) / (LONG_EVENTS - EVENTS)
        for name, value in long.figures("slope", 1).items()
    }
    reads = short.outcome.reads / (short.outcome.answered * EVENTS)
    return {**short.figures("event", EVENTS), **slopes, "reads_per_event": reads}


def first_events(session: Session, load: Load, seconds: float) -> Figures:
    """Measure the time to the first event at a fixed rate of streams."""
    outcome = session.streams(
        EVENTS,
        connections=TTFT_CONNECTIONS,
        seconds=seconds * TTFT_RUNS,
        rate=load.streams_per_s,
    ).outcome
    return {"ttft_p50_ms": outcome.first_p50_ms, "ttft_p99_ms": outcome.first_p99_ms}


WORKLOADS: Mapping[str, Callable[[Session, Load, float], Figures]] = {
    "1 KB": partial(whole_answers, "1kb"),
    "32 KB": partial(whole_answers, "32kb"),
    "streams": events,
    "time to the first event": first_events,
}


def measure(session: Session, router: Router, seconds: float, turn: Turn) -> None:
    """Run all workloads; what was wrong with one is noted, and it is not counted."""
    for name, workload in WORKLOADS.items():
        try:
            figures = workload(session, router.load, seconds)
            turn.figures |= {name: round(value, 3) for name, value in figures.items()}
        except WrongAnswers as error:
            turn.errors.append(f"{name}: {error}")


def take_turn(router: Router, executable: str, number: int, options: argparse.Namespace) -> Turn:
    """Start servers and a router, measure, and end all of them."""
    turn = Turn(router=router.name, round=number)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        key = create_key(directory / "keys.json")
        ports = stack.enter_context(upstreams(NUM_SERVERS))
        server, port = None, ports[0]
        try:
            if router != DIRECT:
                site = Site(
                    upstreams=ports,
                    cpu=options.router_cpu,
                    directory=directory,
                    key_file=directory / "keys.json",
                )
                spec = routers.build_spec(router, executable, site)
                port = spec.port
                server = stack.enter_context(Server(spec, directory / "log"))
            session = Session(server, port, key)
            warm_up(session, router, min(options.seconds, WARM_UP_S))
            measure(session, router, options.seconds, turn)
        except (ServerFailed, WrongAnswers, OSError, subprocess.SubprocessError) as error:
            turn.errors.append(str(error))
    return turn


def chosen(words: str) -> list[Router]:
    """Return the rows that were named, by program or by row; ``direct`` always."""
    names = words.split(",")
    known = {each.name for each in ROUTERS} | {each.program.value for each in ROUTERS}
    if unknown := set(names) - known:
        raise SystemExit(f"no router {sorted(unknown)[0]!r}; there are: {', '.join(sorted(known))}")
    return [
        each for each in ROUTERS if each == DIRECT or {each.name, each.program.value} & set(names)
    ]


def run(options: argparse.Namespace) -> Report:
    """Take all turns and return what came of them."""
    environment = describe_environment(without_paths(sys.argv))
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, {options.load_cpu})  # and what is started from here, but for routers
    rows = chosen(options.routers)
    programs = {row.program: routers.find_executable(row.program, options) for row in rows}
    there = {program: path for program, path in programs.items() if path is not None}
    turns = [
        _told(take_turn(row, there[row.program], number, options))
        for number in range(1, options.repetitions + 1)
        for row in rows
        if row.program in there
    ]
    medians = medians_of(turns)
    return Report(
        environment=environment,
        load_average_before=load,
        versions={
            program.value: routers.version_of(program, path)
            for program, path in there.items()
            if program is not Program.DIRECT
        },
        not_run=sorted(program.value for program in set(programs) - set(there)),
        medians=medians,
        turns=turns,
        verdicts=judge(medians),
    )


def _told(turn: Turn) -> Turn:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in turn.figures.items())
    print(f"{turn.round}: {turn.router}: {figures}", file=sys.stderr, flush=True)
    for error in turn.errors:
        print(f"   {error}", file=sys.stderr, flush=True)
    return turn


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    programs = ",".join(program for program in Program if program is not Program.DIRECT)
    add("--routers", default=programs, help=f"programs or rows, with commas ({programs})")
    routers.add_arguments(parser)
    add("--repetitions", type=int, default=3, help="rounds, medians of which are shown")
    add("--seconds", type=float, default=2.5, help="of a run")
    add("--router-cpu", type=int, default=1, help="the router's processor")
    add("--load-cpu", type=int, default=0, help="that of servers and client")
    add("--json", type=Path, help="write all figures there")
    add("--markdown", type=Path, help="write the tables there")
    options = parser.parse_args()
    missing = {options.router_cpu, options.load_cpu} - os.sched_getaffinity(0)
    if missing or options.router_cpu == options.load_cpu:
        parser.error("--router-cpu and --load-cpu must be two processors that this may run on")
    return options


def main() -> int:
    """Run the benchmark; exit code 1 if a bar is missed or an answer was wrong."""
    end_on_sigterm()
    options = parse_arguments()
    report = run(options)
    text = markdown(report)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)
    missed = any(verdict.reached is False for verdict in report.verdicts)
    return 1 if missed or any(turn.errors for turn in report.turns) else 0


if __name__ == "__main__":
    sys.exit(main())
