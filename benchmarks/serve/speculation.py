"""What drafts from a sequence's own text (engine.speculation) gain, and what they cost elsewhere.

    python benchmarks/serve/speculation.py --rounds 3 --seed 40

Two servers on the default model, one without and one with drafts, take turns text by text: the
one that is not asked is frozen. Both get the same prompts, 128 tokens out each (B: 64), streamed:

repeat    repeat this text word for word (about 200 tokens in), one request at a time, greedy
edit      the same text with spelling mistakes, to be corrected
quote     summarise the text with quotes from it
warm      repeat, at temperature 0.5
A         workload A of compare.py: ordinary text, greedy, which a small model makes loops of
A sampled the same at temperature 1: ordinary text that does not repeat itself
B sampled workload B of compare.py at temperature 1: 32 requests at a time

Prints medians over the rounds and ratios, and the share of drafts that were right; writes JSON.
Exits 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from processes import Server, ServerSpec
from workloads import A_OUT, A_REQUESTS, B_CONCURRENCY, B_OUT, B_REQUESTS, Driver, Prompts

from headrace.bench.client import Call, Client
from headrace.bench.command import loop_factory
from headrace.bench.config import Endpoint, Target
from headrace.bench.environment import Environment, describe_environment
from headrace.bench.prompts import CountTokens, english, reference
from headrace.bench.runner import Load
from headrace.bench.stats import Summary, summarise
from headrace.cli.models import local_model
from headrace.clock import MonotonicClock
from headrace.config import Config, read_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).parent.parent / "results"
MODEL = "smollm2-135m-instruct"
TEXT_TOKENS = 160
MODES = ("off", "lookup")
REPEAT = "Repeat this text word for word, without any change:\n\n{}"
EDIT = "Correct the spelling of this text and answer with the corrected text only:\n\n{}"
QUOTE = "Summarise this text in three sentences, with quotes from it:\n\n{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One server's turn at one kind of text in one round."""

    mode: str
    text: str
    round: int
    draft_tokens: int
    accepted_tokens: int
    summary: Summary
    answers: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A kind of text: medians of the rounds, in output tokens/s."""

    off: float
    lookup: float
    ratio: float
    accepted_share: float  # of drafts
    tokens_a_draft_row: float
    same_answers: float  # share; arithmetic in 16 bits may choose otherwise between near-equals


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a run found."""

    environment: Environment
    note: str
    flags: Sequence[str]
    seed: int
    load_average_before: float
    rows: dict[str, Row]
    turns: Sequence[Turn]


class Texts:
    """Makes the calls of one round. The same seed and round make the same ones."""

    def __init__(self, count: CountTokens, seed: int, number: int) -> None:
        self._prompts = Prompts(count, seed, number)
        self._count = count

    def calls(self, text: str) -> tuple[list[Call], int]:
        """Return the calls of a kind of text, and how many are made at a time."""
        match text:
            case "repeat":
                return self._chats("R", REPEAT, temperature=0), 1
            case "edit":
                return self._chats("E", EDIT, temperature=0, change=misspell), 1
            case "quote":
                return self._chats("Q", QUOTE, temperature=0), 1
            case "warm":
                return self._chats("W", REPEAT, temperature=0.5), 1
            case "A":
                return self._plain("A", A_REQUESTS, A_OUT, temperature=0), 1
            case "A sampled":
                return self._plain("S", A_REQUESTS, A_OUT, temperature=1), 1
            case "B sampled":
                return self._plain("B", B_REQUESTS, B_OUT, temperature=1), B_CONCURRENCY
        raise SystemExit(f"no text {text!r}; there are: {', '.join(TEXTS)}")

    def _chats(
        self,
        letter: str,
        wording: str,
        *,
        temperature: float,
        change: Callable[[str], str] = str,
    ) -> list[Call]:
        rng = self._prompts.rng(letter)
        texts = [
            english(rng, tokens=TEXT_TOKENS, count=self._count, head=reference(rng))
            for _ in range(A_REQUESTS)
        ]
        return [
            Call(
                prompt=[("user", wording.format(change(text)))],
                endpoint=Endpoint.CHAT,
                max_tokens=A_OUT,
                fields=_fields(temperature, index),
            )
            for index, text in enumerate(texts)
        ]

    def _plain(self, letter: str, number: int, tokens: int, *, temperature: float) -> list[Call]:
        return [
            Call(prompt=prompt, max_tokens=tokens, fields=_fields(temperature, index))
            for index, prompt in enumerate(self._prompts.plain(letter, number))
        ]


TEXTS = ("repeat", "edit", "quote", "warm", "A", "A sampled", "B sampled")


def _fields(temperature: float, seed: int) -> dict[str, float | int | bool]:
    return {"temperature": temperature, "seed": seed, "ignore_eos": True}


def misspell(text: str) -> str:
    """Put a mistake into every 12th word that is long enough."""
    words = text.split(" ")
    for index in range(5, len(words), 12):
        word = words[index]
        if len(word) > 4:
            words[index] = word[:2] + word[3] + word[2] + word[4:]
    return " ".join(words)


def token_counter() -> CountTokens:
    """Return a counter in the default model's tokenizer."""
    _, text = local_model(MODEL, Config(), read_environment())
    return lambda prompt: len(text.tokenizer.encode(prompt))


async def take_turn(server: Server, mode: str, text: str, number: int, texts: Texts) -> Turn:
    """Ask one server for one kind of text."""
    clock = MonotonicClock()
    client = Client(target=Target(base_url=server.spec.base_url), model=MODEL, clock=clock)
    before = await drafted(server)
    calls, concurrency = texts.calls(text)
    load = Load(client=client, clock=clock, max_in_flight=len(calls))
    await load.closed(calls, concurrency=concurrency)
    await asyncio.sleep(1)  # for the engine's last report
    after = await drafted(server)
    return Turn(
        mode=mode,
        text=text,
        round=number,
        draft_tokens=after[0] - before[0],
        accepted_tokens=after[1] - before[1],
        summary=summarise(load.samples),
        answers=[sample.outcome.text for sample in load.samples] if concurrency == 1 else [],
    )


async def drafted(server: Server) -> tuple[int, int]:
    """Return how many drafts the engine made, and how many were right."""
    target = Target(base_url=server.spec.base_url)
    page = await Client(target=target, model="", clock=MonotonicClock()).get("/metrics")
    return tuple(  # type: ignore[return-value]
        sum(
            int(float(value))
            for value in re.findall(
                rf"^headrace_engine_{name}_tokens_total\S* (\S+)$", page.decode(), re.M
            )
        )
        for name in ("draft", "accepted_draft")
    )


async def warm_up(server: Server, count: CountTokens) -> None:
    clock = MonotonicClock()
    client = Client(target=Target(base_url=server.spec.base_url), model=MODEL, clock=clock)
    await Driver(client, clock, Prompts(count, 0, 0)).warm_up()


def run(args: argparse.Namespace, servers: dict[str, Server]) -> list[Turn]:
    """Run all rounds; which server goes first alternates."""
    count, turns = token_counter(), []
    for mode, server in servers.items():
        print(f"{mode} starts", file=sys.stderr)
        server.start()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(warm_up(server, count))
        server.pause()
    for number in range(1, args.rounds + 1):
        texts = Texts(count, args.seed, number)
        for text in args.texts.split(","):
            for mode in MODES if number % 2 else reversed(MODES):
                servers[mode].resume()
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    turn = runner.run(take_turn(servers[mode], mode, text, number, texts))
                servers[mode].pause()
                turns.append(turn)
                print(f"  round {number} {describe(turn)}", file=sys.stderr, flush=True)
    return turns


def describe(turn: Turn) -> str:
    failed = f"  {turn.summary.failed} FAILED" if turn.summary.failed else ""
    return (
        f"{turn.text:<10}{turn.mode:<7}{turn.summary.output_tokens_per_s:7.1f} tokens/s"
        f"  drafts {turn.draft_tokens}, right {turn.accepted_tokens}{failed}"
    )


def row_of(turns: Sequence[Turn]) -> Row:
    """Return the medians of one kind of text. The ratio is the median of the rounds' ratios."""
    by_mode = {mode: [turn for turn in turns if turn.mode == mode] for mode in MODES}
    rates = {
        mode: [turn.summary.output_tokens_per_s for turn in sorted(of_mode, key=_by_round)]
        for mode, of_mode in by_mode.items()
    }
    drafts = sum(turn.draft_tokens for turn in by_mode["lookup"])
    accepted = sum(turn.accepted_tokens for turn in by_mode["lookup"])
    pairs = [
        (one, other)
        for off in by_mode["off"]
        for on in by_mode["lookup"]
        if on.round == off.round
        for one, other in zip(off.answers, on.answers, strict=True)
    ]
    tokens = sum(turn.summary.output_tokens for turn in by_mode["lookup"])
    return Row(
        off=median(rates["off"]),
        lookup=median(rates["lookup"]),
        ratio=median(on / off for on, off in zip(rates["lookup"], rates["off"], strict=True)),
        accepted_share=accepted / drafts if drafts else 0.0,
        tokens_a_draft_row=tokens / max(1, tokens - accepted),
        same_answers=sum(one == other for one, other in pairs) / len(pairs) if pairs else 1.0,
    )


def _by_round(turn: Turn) -> int:
    return turn.round


def print_rows(rows: dict[str, Row]) -> None:
    print(
        f"\n{'tokens/s, medians':<20}{'off':>8}{'lookup':>8}{'ratio':>8}{'drafts right':>14}",
        end="",
    )
    print(f"{'tokens a step':>15}{'same answers':>14}")
    for text, row in rows.items():
        print(
            f"{text:<20}{row.off:>8.1f}{row.lookup:>8.1f}{f'x{row.ratio:.2f}':>8}"
            f"{row.accepted_share:>14.0%}{row.tokens_a_draft_row:>15.2f}{row.same_answers:>14.0%}"
        )


def spec_of(mode: str, args: argparse.Namespace, port: int) -> ServerSpec:
    command = [sys.executable, "-m", "headrace", "serve", MODEL, "--port", str(port)]
    command += ["--no-console", *shlex.split(args.flags)]
    environment = {"HEADRACE_ENGINE_SPECULATION": mode}
    return ServerSpec(
        name=mode, command=command, port=port, ready_path="/ready", environment=environment
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="use one that was not used before")
    parser.add_argument("--texts", default=",".join(TEXTS), help="kinds of text, in order")
    parser.add_argument("--flags", default="", help="further flags of both servers")
    parser.add_argument("--first-port", type=int, default=8190)
    parser.add_argument("--note", default="", help="kept in the result")
    parser.add_argument("--json", type=Path, default=RESULTS / "speculation.json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    load = float(Path("/proc/loadavg").read_text().split()[0])
    logs = Path(tempfile.mkdtemp(prefix="speculation-logs-"))
    servers = {
        mode: Server(spec_of(mode, args, args.first_port + 10 * index), logs / f"{mode}.log")
        for index, mode in enumerate(MODES)
    }
    try:
        turns = run(args, servers)
    finally:
        for server in servers.values():
            server.stop()
    rows = {
        text: row_of([turn for turn in turns if turn.text == text])
        for text in args.texts.split(",")
    }
    print_rows(rows)
    result = Result(
        environment=describe_environment(sys.argv),
        note=args.note,
        flags=shlex.split(args.flags),
        seed=args.seed,
        load_average_before=load,
        rows=rows,
        turns=turns,
    )
    args.json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(result)), indent=1))
    print(f"\n{args.json}")
    return 1 if any(turn.summary.failed for turn in turns) else 0


if __name__ == "__main__":
    sys.exit(main())
