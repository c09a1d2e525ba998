"""How many requests a second 1 and 2 gateway processes take, open-loop, without an error.

Client, gateways and replicas share the machine's cores. Two workloads:

- ``passthrough``: ``headrace gateway`` before two servers with canned answers; 1 KB of JSON in,
  300 B out, keys from a key file, prefix-aware routing (predicted_ttft), journal, metrics on;
- ``native``: ``headrace serve simulated:PATH`` with two replicas whose steps take hardly any time
  (``--speed``), so that it is our own work that counts; a chat of 1 KB, 16 tokens streamed.

For each number of gateways the rate rises until a trial fails (an error, less than 99 % answered in
time, or a p99 above ``--p99-ms``), is narrowed down, and the highest is held for ``--seconds``; if
that fails, 5 % less is tried. The p99 added is that through the gateway less that of the same
client at the servers themselves at the same rate; native: less the median of a quiet server (10/s),
which has the replicas' own steps in it.

    python benchmarks/serve/rate.py --model FILE.gguf --json benchmarks/results/gateway_rate.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from rate_client import Job, Outcome

sys.path.insert(0, str(Path(__file__).parents[1] / "micro"))
from passthrough_cost import upstream

from headrace.bench.environment import describe_environment
from headrace.testing.server_process import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BARS = {"passthrough": 10_000, "native": 1_000}
"""Requests a second that are wanted with two gateways."""

NUM_REPLICAS = 2
QUIET_RATE = 10.0
NUM_BODIES = 512
NUM_PREFIXES = 16
TRIAL_S = 5.0
GROWTH = 1.25
CLOSE_ENOUGH = 1.04
WORDS = ("the", "water", "of", "a", "mill", "runs", "in", "its", "race", "and", "wheel", "day")
CLIENT = Path(__file__).with_name("rate_client.py")


def requests(key: str, *, streamed: bool) -> list[bytes]:
    """Return whole requests of about 1 KB: some hundred prompts, a few ways to begin."""
    rng = random.Random(0)
    prefixes = [" ".join(rng.choices(WORDS, k=100)) for _ in range(NUM_PREFIXES)]
    made = []
    for _ in range(NUM_BODIES):
        content = f"{rng.choice(prefixes)} {' '.join(rng.choices(WORDS, k=120))}"
        fields: dict[str, object] = {"messages": [{"role": "user", "content": content}]}
        fields |= (
            {"stream": True, "max_tokens": 16, "ignore_eos": True} if streamed else {"model": "m"}
        )
        made.append(chat_request(key, fields))
    return made


def chat_request(key: str, fields: Mapping[str, object]) -> bytes:
    """Return a whole request for a chat."""
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def create_key(file: Path) -> str:
    """Make a key file with one key in it; return the key."""
    make = [sys.executable, "-m", "headrace", "keys", "create", "bench", "--file", str(file)]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    return next(word for word in done.stdout.split() if word.startswith("hr-"))


@contextmanager
def serving(
    workload: str, gateways: int, options: argparse.Namespace
) -> Iterator[tuple[int, str, int]]:
    """Start the servers; yield the port, the key, and a replica's own port (0: none)."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rate-")))
        keys = directory / "keys.json"
        key = create_key(keys)
        arguments = ["--gateways", str(gateways), "--key-file", str(keys)]
        environment = {**os.environ, "TMPDIR": str(directory)}
        own = 0
        if workload == "passthrough":
            urls = [stack.enter_context(upstream()) for _ in range(options.replicas)]
            own = int(urls[0].rpartition(":")[2])
            for url in urls:
                arguments += ["--replica", url]
            command = "gateway"
        else:
            environment["HEADRACE_ENGINE_SIMULATED_SPEED"] = str(options.speed)
            arguments += ["--replicas", str(options.replicas), "--max-num-seqs", "256"]
            arguments = [f"simulated:{options.model}", *arguments]
            command = "serve"
        server = stack.enter_context(
            running_server(*arguments, environment=environment, command=command)
        )
        yield server.port, key, own


def run_client(job: Job) -> Outcome:
    """Run a client process."""
    done = subprocess.run(
        [sys.executable, str(CLIENT)],
        input=msgspec.json.encode(job),
        capture_output=True,
        timeout=job.seconds + 60,
    )
    if done.returncode:
        raise RuntimeError(f"a client ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Outcome)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several clients: sums, and of their percentiles the worst."""
    added = {
        name: sum(getattr(each, name) for each in outcomes)
        for name in ("sent", "answered", "errors", "reads")
    }
    worst = {
        name: max(getattr(each, name) for each in outcomes)
        for name in ("seconds", "p50_ms", "p99_ms", "max_ms", "first_p50_ms", "first_p99_ms")
    }
    first = next((each.first_error for each in outcomes if each.first_error), "")
    return Outcome(first_error=first, **added, **worst)


class Bench:
    """One workload at one server."""

    def __init__(self, port: int, key: str, *, streamed: bool, options: argparse.Namespace) -> None:
        self.port = port
        self.trials: list[dict[str, object]] = []
        self._requests = requests(key, streamed=streamed)
        self._streamed = streamed
        self._options = options

    def run(self, rate: float, seconds: float, port: int | None = None) -> Outcome:
        """Send at a rate; return what came."""
        clients = self._options.clients
        job = Job(
            port=port or self.port,
            connections=max(1, self._options.connections // clients),
            rate=rate / clients,
            seconds=seconds,
            requests=self._requests,
            streamed=self._streamed,
        )
        with ThreadPoolExecutor(clients) as pool:
            return together(list(pool.map(run_client, [job] * clients)))

    def holds(self, rate: float, seconds: float) -> Outcome | None:
        """Try a rate; return the outcome if it is sustained."""
        outcome = self.run(rate, seconds)
        self.trials.append({"rate": round(rate), **msgspec.to_builtins(outcome)})
        good = self.is_sustained(outcome, rate, seconds)
        print(
            f"  {rate:7.0f}/s for {seconds:.0f} s: {'holds' if good else 'fails'}, p99 "
            f"{outcome.p99_ms} ms, {outcome.errors} errors {outcome.first_error[:80]!r}",
            flush=True,
        )
        return outcome if good else None

    def is_sustained(self, outcome: Outcome, rate: float, seconds: float) -> bool:
        """Whether all was answered, well and in time."""
        in_time = (
            outcome.answered >= 0.99 * rate * seconds and outcome.seconds < 1.02 * seconds + 0.2
        )
        return not outcome.errors and in_time and outcome.p99_ms <= self._options.p99_ms

    def highest(self, start: float) -> float:
        """Return the highest rate that short trials hold."""
        low, high = 0.0, start
        while self.holds(high, self._options.trial):
            low, high = high, high * GROWTH
        while not low or high / low > CLOSE_ENOUGH:
            middle = (low + high) / 2 if low else high / 2
            if self.holds(middle, self._options.trial):
                low = middle
            else:
                high = middle
            if high < 1:
                raise RuntimeError("not even one request a second holds")
        return low

    def result(self, workload: str) -> tuple[float, Outcome]:
        """Return the rate that was named, or the highest that is sustained, and what came."""
        if self._options.rate:
            return self._options.rate, self.run(self._options.rate, self._options.seconds)
        return self.sustained(self._options.start or BARS[workload] / 4)

    def sustained(self, start: float) -> tuple[float, Outcome]:
        """Return the highest rate that is held for the whole time, and what came."""
        rate = self.highest(start)
        while True:
            outcome = self.holds(rate, self._options.seconds)
            if outcome is not None:
                return rate, outcome
            rate *= 0.95


def measure(workload: str, gateways: int, options: argparse.Namespace) -> dict[str, object]:
    """Return the figures of one workload and number of gateways."""
    print(f"{workload}, {gateways} gateways", flush=True)
    with serving(workload, gateways, options) as (port, key, own):
        bench = Bench(port, key, streamed=workload == "native", options=options)
        bench.run(BARS[workload] / 20, 2.0)  # warm up
        quiet = bench.run(QUIET_RATE, options.trial)
        rate, outcome = bench.result(workload)
        direct = bench.run(rate, options.trial, own) if own else quiet
    own_ms = direct.p99_ms if own else direct.p50_ms
    added = round(outcome.p99_ms - own_ms, 3)
    print(
        f"  -> {rate:.0f} requests/s for {options.seconds:.0f} s, p50 {outcome.p50_ms} ms, p99 "
        f"{outcome.p99_ms} ms (added: {added} ms)",
        flush=True,
    )
    return {
        "workload": workload,
        "gateways": gateways,
        "requests_per_second": round(rate),
        "bar": BARS[workload],
        "sustained": bench.is_sustained(outcome, rate, options.seconds),
        "outcome": msgspec.to_builtins(outcome),
        "direct": msgspec.to_builtins(direct),
        "added_p99_ms": added,
        "trials": bench.trials,
    }


def main() -> int:
    """Run the benchmark; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="", help="GGUF file whose tokenizer `native` uses")
    add("--workloads", default="passthrough,native")
    add("--gateways", default="1,2", help="numbers of gateway processes")
    add("--seconds", type=float, default=60.0, help="that the result is held")
    add("--rate", type=float, default=0.0, help="only this rate, whatever comes of it")
    add("--start", type=float, default=0.0, help="rate of the first trial")
    add("--trial", type=float, default=TRIAL_S, help="seconds of a trial")
    add("--connections", type=int, default=64, help="of all clients")
    add("--clients", type=int, default=1, help="client processes, where cores are many")
    add("--replicas", type=int, default=NUM_REPLICAS)
    add("--p99-ms", type=float, default=250.0, help="a rate with a longer p99 is not sustained")
    add("--speed", type=float, default=0.01, help="of the simulated model's steps; 0: no time")
    add("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    workloads = options.workloads.split(",")
    if "native" in workloads and not options.model:
        parser.error("native needs --model FILE.gguf")
    rows = [
        measure(workload, int(number), options)
        for workload in workloads
        for number in options.gateways.split(",")
    ]
    environment = asdict(describe_environment([Path(word).name for word in sys.argv]))
    if options.json:
        report = {"environment": environment, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    best = {name: 0 for name in workloads}
    for row in rows:
        name = str(row["workload"])
        if row["sustained"]:
            best[name] = max(best[name], cast("int", row["requests_per_second"]))
    for name, rate in best.items():
        verdict = "reached" if rate >= BARS[name] else "missed"
        print(f"{name}: {rate} requests/s, bar {BARS[name]}: {verdict}")
    return 0 if all(rate >= BARS[name] for name, rate in best.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
