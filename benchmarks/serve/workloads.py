"""The workloads that servers are compared on. Token counts are exact in the model's tokenizer.

A  single stream: 4 requests, 128 in, 128 out
B  saturation: 96 requests, 32 at a time, 128 in, 64 out
C  shared prefixes: 64 requests in 8 groups, 600 common + 40 own tokens in, 32 out, 16 at a time
D  conversations: 12 sessions side by side, 5 turns each, growing history, 32 out a turn
E  B's requests arriving as a Poisson process of a given rate
R  single stream, repetitive: 4 requests to write 100 tokens of text once more, 128 out

Every request streams over one connection of its own, greedy, with ignore_eos. Prompts come from
a seed: another round has other prompts, so that no cache carries over, and within a round every
server gets the same ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.bench.client import Call, Client
from headrace.bench.config import OpenLoop
from headrace.bench.prompts import CountTokens, english, reference
from headrace.bench.runner import Load
from headrace.bench.schedule import arrival_times
from headrace.bench.stats import Sample, Summary, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.clock import Clock

GREEDY = {"temperature": 0.0, "ignore_eos": True}
ASK = " What did they do after that?"
A_REQUESTS, A_OUT = 4, 128
B_REQUESTS, B_CONCURRENCY, B_OUT = 96, 32, 64
INPUT_TOKENS = 128
C_GROUPS, C_PER_GROUP, C_CONCURRENCY, C_OUT = 8, 8, 16, 32
C_PREFIX_TOKENS, C_OWN_TOKENS = 600, 40
D_SESSIONS, D_TURNS, D_OUT = 12, 5, 32
D_SYSTEM_TOKENS, D_TURN_TOKENS = 60, 30
R_TEXT_TOKENS, R_OPENING_WORDS = 100, 6
MAX_IN_FLIGHT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the user says in a session of workload D."""

    system: str
    turns: Sequence[str]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes one round's prompts. The same seed and round make the same ones."""

    count: CountTokens
    seed: int
    round: int

    def rng(self, workload: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.round, ord(workload)))

    def plain(self, workload: str, number: int) -> list[str]:
        """Return ``number`` prompts of INPUT_TOKENS tokens."""
        rng = self.rng(workload)
        return [self._text(rng, INPUT_TOKENS, ASK) for _ in range(number)]

    def grouped(self) -> list[str]:
        """Return workload C's prompts, groups mixed."""
        rng = self.rng("C")
        prompts: list[str] = []
        for _ in range(C_GROUPS):
            prefix = self._text(rng, C_PREFIX_TOKENS, "", " Answer from these notes only.")
            for _ in range(C_PER_GROUP):
                head = f"{prefix}\n\nQuestion {int(rng.integers(100_000))}:"
                tail = " Which of these came first?\nAnswer:"
                total = C_PREFIX_TOKENS + C_OWN_TOKENS
                prompts.append(english(rng, tokens=total, count=self.count, head=head, tail=tail))
        return [prompts[int(index)] for index in rng.permutation(len(prompts))]

    def conversations(self) -> list[Conversation]:
        """Return workload D's sessions."""
        rng = self.rng("D")
        return [
            Conversation(
                system=self._text(rng, D_SYSTEM_TOKENS, "", " You are a patient assistant."),
                turns=[
                    english(rng, tokens=D_TURN_TOKENS, count=self.count, tail=ASK)
                    for _ in range(D_TURNS)
                ],
            )
            for _ in range(D_SESSIONS)
        ]

    def repetitive(self) -> list[str]:
        """Return workload R's prompts: a text, and the opening of the same text."""
        rng = self.rng("R")
        prompts: list[str] = []
        for _ in range(A_REQUESTS):
            text = self._text(rng, R_TEXT_TOKENS, "")
            opening = " ".join(text.split()[:R_OPENING_WORDS])
            prompts.append(f"{text}\n\nThe same text once more, word for word:\n\n{opening}")
        return prompts

    def _text(self, rng: np.random.Generator, tokens: int, tail: str, opening: str = "") -> str:
        head = reference(rng) + opening
        return english(rng, tokens=tokens, count=self.count, head=head, tail=tail)


@dataclass(frozen=True, slots=True)
class Driver:
    """Runs workloads against one server."""

    client: Client
    clock: Clock
    prompts: Prompts

    async def run(self, workload: str) -> Summary:
        """Run A, B, C, D or R."""
        match workload:
            case "A":
                calls = _calls(self.prompts.plain("A", A_REQUESTS), A_OUT)
                samples = await self._closed(calls, 1)
            case "B":
                calls = _calls(self.prompts.plain("B", B_REQUESTS), B_OUT)
                samples = await self._closed(calls, B_CONCURRENCY)
            case "C":
                samples = await self._closed(_calls(self.prompts.grouped(), C_OUT), C_CONCURRENCY)
            case "D":
                samples = await self._talk(self.prompts.conversations())
            case "R":
                samples = await self._closed(_calls(self.prompts.repetitive(), A_OUT), 1)
            case _:
                raise ValueError(f"no workload {workload!r}")
        return summarise(samples)

    async def arrivals(self, *, rate: float, seconds: float) -> Summary:
        """Run E: B's requests, for ``seconds`` at ``rate`` a second."""
        number = max(1, round(rate * seconds))
        calls = _calls(self.prompts.plain("E", number), B_OUT)
        rng = self.prompts.rng("e")
        load = self._load()
        await load.open(calls, times=arrival_times(OpenLoop(rate=rate), count=number, rng=rng))
        return summarise(load.samples)

    async def warm_up(self) -> None:
        """Send a few requests that are no part of any workload."""
        await self._closed(_calls(self.prompts.plain("W", 8), 16), 4)

    def _load(self) -> Load:
        return Load(client=self.client, clock=self.clock, max_in_flight=MAX_IN_FLIGHT)

    async def _closed(self, calls: Sequence[Call], concurrency: int) -> list[Sample]:
        load = self._load()
        await load.closed(calls, concurrency=concurrency)
        return load.samples

    async def _talk(self, conversations: Sequence[Conversation]) -> list[Sample]:
        samples: list[Sample] = []
        async with asyncio.TaskGroup() as tasks:
            for conversation in conversations:
                tasks.create_task(self._session(conversation, samples))
        return samples

    async def _session(self, conversation: Conversation, samples: list[Sample]) -> None:
        history = conversation.system
        for turn in conversation.turns:
            history += f"\n\nUser: {turn}\n\nAssistant:"
            due_at = self.clock.now()
            outcome = await self.client.generate(_call(history, D_OUT))
            samples.append(Sample(due_at=due_at, outcome=outcome))
            history += outcome.text


def _call(prompt: str, max_tokens: int) -> Call:
    return Call(prompt=prompt, max_tokens=max_tokens, fields=GREEDY)


def _calls(prompts: Sequence[str], max_tokens: int) -> list[Call]:
    return [_call(prompt, max_tokens) for prompt in prompts]
