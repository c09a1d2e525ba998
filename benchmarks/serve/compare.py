"""Measure our server and its peers side by side, in one run.

    python benchmarks/serve/compare.py --servers ours,llamacpp,openvino --hf-dir DIR ...

Rounds are interleaved (first server, second, ..., first again), so that noise of the machine is
shared. In each round a server is started, awaited, warmed up, loaded with the chosen workloads
and stopped; ``--pause NAME`` starts it once and freezes it between its turns. One client for
all. Writes dated JSON, prints medians, ratios and the bars. Exits 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
import servers
from bars import SATURATING, Measured, Verdict, judge_engine, judge_spine
from processes import Footprint, Server, ServerSpec, end_on_sigterm, without_paths
from workloads import Driver, Prompts

from headrace.bench.client import Client
from headrace.bench.command import loop_factory
from headrace.bench.config import Target
from headrace.bench.environment import Environment, describe_environment
from headrace.bench.prompts import CountTokens, load_counter
from headrace.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headrace.bench.stats import Distribution, Summary

RESULTS = Path(__file__).parent.parent / "results"
SERVERS_HELP = f"""NAME or NAME:WORKLOADS, of {", ".join(servers.BUILDERS)} and --variant; ours goes
to peers' own rates in E if it comes after them"""


@dataclass(slots=True, kw_only=True)
class Turn:
    """A server's turn in a round."""

    server: str
    round: int
    ready_s: float
    runs: dict[str, Summary] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # of E's runs, requests a second
    after: dict[str, Footprint] = field(default_factory=dict)  # by workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a run found."""

    environment: Environment
    commands: Mapping[str, Sequence[str]]
    note: str
    seed: int
    load_average_before: float
    turns: Sequence[Turn]
    medians: Mapping[str, Mapping[str, Measured]]  # server -> workload
    spine: Sequence[Verdict]
    engine: Sequence[Verdict]


class Comparison:
    """Runs turns. Owns the servers that are kept frozen between theirs."""

    def __init__(self, args: argparse.Namespace, logs: Path) -> None:
        self._args = args
        self._logs = logs
        self._count: CountTokens = load_counter(str(Path(args.hf_dir) / "tokenizer.json"))
        self.workloads = read_servers(args.servers, args.workloads)
        self.specs = {
            name: servers.build_spec(name, args, args.first_port + index)
            for index, name in enumerate(self.workloads)
        }
        self._frozen: dict[str, Server] = {}
        self.turns: list[Turn] = []

    def run(self) -> None:
        """Run all rounds. Raises ServerFailed."""
        try:
            for number in range(1, self._args.rounds + 1):
                for name in self.specs:
                    self._take_turn(name, number)
        finally:
            for server in self._frozen.values():
                server.stop()

    def _take_turn(self, name: str, number: int) -> None:
        keep = name in self._args.pause.split(",")
        server = self._frozen.get(name)
        if server is None:
            say(f"round {number}: {name} starts")
            server = Server(self.specs[name], self._logs / f"{name}.log")
            server.start()
        else:
            server.resume()
        try:
            turn = Turn(server=name, round=number, ready_s=server.ready_s)
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._load(server, turn))
            self.turns.append(turn)
        except BaseException:
            server.stop()
            raise
        if keep:
            self._frozen[name] = server
            server.pause()
        else:
            server.stop()

    async def _load(self, server: Server, turn: Turn) -> None:
        clock = MonotonicClock()
        target = Target(base_url=server.spec.base_url)
        listing = Client(target=target, model="", clock=clock)
        model = (await listing.list_models())[0]
        prompts = Prompts(self._count, self._args.seed, turn.round)
        driver = Driver(Client(target=target, model=model, clock=clock), clock, prompts)
        await driver.warm_up()
        for workload in self.workloads[turn.server]:
            if workload == "E":
                await self._arrivals(driver, turn)
                continue
            turn.runs[workload] = await driver.run(workload)
            turn.after[workload] = server.footprint()
            report_run(turn, workload)

    async def _arrivals(self, driver: Driver, turn: Turn) -> None:
        if "B" not in turn.runs:
            raise SystemExit("workload E takes its rate from B: give --workloads ..B..E")
        saturated = turn.runs["B"].requests_per_s
        rates = {f"E{share:.0%}": share * saturated for share in self._args.e_shares}
        if turn.server == servers.OURS:
            rates |= rates_of_peers(self.turns, turn.round)
        rates |= {f"E@{rate:g}": rate for rate in self._args.rate}
        for name, rate in rates.items():
            turn.rates[name] = rate
            turn.runs[name] = await driver.arrivals(rate=rate, seconds=self._args.e_seconds)
            report_run(turn, name)


def read_servers(text: str, workloads: str) -> dict[str, str]:
    """Return server -> its workloads, from ``NAME,NAME:WORKLOADS``."""
    parts = (part.partition(":") for part in text.split(","))
    return {name: own or workloads for name, _, own in parts}


def rates_of_peers(turns: Iterable[Turn], number: int) -> dict[str, float]:
    """Return what peers' own saturating rates were in a round, by the workload's name for ours."""
    return {
        f"{SATURATING}:{turn.server}": turn.rates[SATURATING]
        for turn in turns
        if turn.round == number and turn.server not in ours_of(turns) and SATURATING in turn.rates
    }


def ours_of(turns: Iterable[Turn]) -> list[str]:
    """Return the names of our rows."""
    names = dict.fromkeys(turn.server for turn in turns)
    return [name for name in names if name not in servers.PEERS]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report_run(turn: Turn, workload: str) -> None:
    run = turn.runs[workload]
    failed = f", {run.failed} FAILED: {run.errors[0].example}" if run.failed else ""
    say(
        f"  {turn.server:<16} {workload:<4} {run.output_tokens_per_s:7.1f} tokens/s"
        f" in {run.duration_s:.1f} s{failed}"
    )


def medians_of(turns: Sequence[Turn]) -> dict[str, dict[str, Measured]]:
    """Return server -> workload -> medians of the rounds."""
    runs: dict[str, dict[str, list[Summary]]] = {}
    for turn in turns:
        of_server = runs.setdefault(turn.server, {})
        for workload, run in turn.runs.items():
            of_server.setdefault(workload, []).append(run)
    return {
        server: {workload: measured_of(each) for workload, each in of_server.items()}
        for server, of_server in runs.items()
    }


def measured_of(runs: Sequence[Summary]) -> Measured:
    """Return the medians of a workload's runs."""
    ttft = [run.ttft_ms for run in runs if run.ttft_ms is not None]
    itl = [run.itl_ms for run in runs if run.itl_ms is not None]
    return Measured(
        rate=median(run.output_tokens_per_s for run in runs),
        ttft_p95=median(each.p95 for each in ttft) if ttft else None,
        itl_p95=median(each.p95 for each in itl) if itl else None,
        itl_p99=median(each.p99 for each in itl) if itl else None,
    )


def shown_command(spec: ServerSpec) -> list[str]:
    settings = [f"{name}={value}" for name, value in spec.environment.items()]
    return without_paths([*settings, *spec.command])


def build_result(comparison: Comparison, args: argparse.Namespace, load: float) -> Result:
    turns = comparison.turns
    ours = [turn for turn in turns if turn.server == servers.OURS]
    pss = [turn.after["B"].pss_mb for turn in ours if "B" in turn.after]
    medians = medians_of(turns)
    return Result(
        environment=describe_environment(without_paths(sys.argv)),
        commands={name: shown_command(spec) for name, spec in comparison.specs.items()},
        note=args.note,
        seed=args.seed,
        load_average_before=load,
        turns=turns,
        medians=medians,
        spine=judge_spine(
            medians,
            pss_mb=median(pss) if pss else None,
            ready_s=max((turn.ready_s for turn in ours), default=None),
        ),
        engine=judge_engine(medians, [name for name in ours_of(turns) if name != servers.OURS]),
    )


def print_tables(result: Result) -> None:
    workloads = list(dict.fromkeys(name for turn in result.turns for name in turn.runs))
    full = [name for name in workloads if not name.startswith("E")]  # E's rate is given
    names = list(result.medians)
    reference = servers.OURS if servers.OURS in names else names[0]
    print(f"\noutput tokens/s, median of rounds (x: {reference} / this)")
    print(f"{'':<18}" + "".join(f"{name:>17}" for name in full) + "   PSS MB  ready s")
    for name in names:
        turns = [turn for turn in result.turns if turn.server == name]
        cells = "".join(_cell(result, name, reference, workload) for workload in full)
        pss = [turn.after["B"].pss_mb for turn in turns if "B" in turn.after]
        memory = f"{median(pss):9,.0f}" if pss else f"{'-':>9}"
        print(f"{name:<18}{cells}{memory}{median(t.ready_s for t in turns):9.1f}")
    print("\nlatency in ms, medians of rounds: TTFT p50/p95/p99 | ITL p50/p95/p99 | E2E p50/p95")
    for workload in workloads:
        for name in names:
            if workload in result.medians[name]:
                print(f"{workload:<22}{name:<18}{_latencies(result, name, workload)}")
    print_verdicts("spine", result.spine)
    print_verdicts("engine", result.engine)


def print_verdicts(name: str, verdicts: Sequence[Verdict]) -> None:
    print(f"\nbars for the {name}")
    words = {True: "reached", False: "MISSED", None: "not measured"}
    further = {True: ", stretch too", False: ", stretch missed", None: ""}
    for verdict in verdicts:
        stretch = further[verdict.stretch]
        print(f"  {words[verdict.reached]:<13}{verdict.bar:<36}{verdict.measured}{stretch}")


def _cell(result: Result, name: str, reference: str, workload: str) -> str:
    this = result.medians[name].get(workload)
    base = result.medians[reference].get(workload)
    if this is None or not this.rate:
        return f"{'-':>17}"
    ratio = f"x{base.rate / this.rate:.2f}" if base else ""
    return f"{this.rate:>10.1f}{ratio:>7}"


def _latencies(result: Result, name: str, workload: str) -> str:
    runs = [t.runs[workload] for t in result.turns if t.server == name and workload in t.runs]
    parts = (
        _middle([run.ttft_ms for run in runs], ("p50", "p95", "p99")),
        _middle([run.itl_ms for run in runs], ("p50", "p95", "p99")),
        _middle([run.e2e_ms for run in runs], ("p50", "p95")),
    )
    return " | ".join(parts)


def _middle(values: Sequence[Distribution | None], names: Sequence[str]) -> str:
    known = [asdict(value) for value in values if value is not None]
    if not known:
        return "-"
    return " / ".join(f"{median(value[name] for value in known):8,.1f}" for name in names)


def write(result: Result, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    stamp = result.environment.date[:19].replace(":", "").replace("-", "")
    path = directory / f"{stamp}-compare.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(result)), indent=1))
    return path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--servers", default=servers.OURS, help=SERVERS_HELP)
    add("--workloads", default="ABCD", help="letters of A B C D E R, in order (default: ABCD)")
    add("--rounds", type=int, default=3)
    add("--pause", default="", help="servers that are frozen between their turns, not restarted")
    add("--seed", type=int, default=1, help="of the prompts: use one that was not used before")
    add("--e-seconds", type=float, default=60.0)
    add("--e-shares", type=float, nargs="+", default=[0.5, 0.9], help="of a server's rate in B")
    add("--rate", type=float, action="append", default=[], help="one more rate for E")
    add("--note", default="", help="kept in the result, e.g. how quiet the machine was")
    add("--results", type=Path, default=RESULTS)
    add("--logs", type=Path, help="directory of the servers' logs (default: a temporary one)")
    servers.add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    end_on_sigterm()
    args = parse_arguments()
    load = float(Path("/proc/loadavg").read_text().split()[0])
    logs = args.logs or Path(tempfile.mkdtemp(prefix="compare-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args, logs)
    try:
        comparison.run()
    finally:
        if comparison.turns:
            result = build_result(comparison, args, load)
            print_tables(result)
            print(f"\n{write(result, args.results)}")
    failed = sum(run.failed for turn in comparison.turns for run in turn.runs.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
