"""What each policy does with a few small scenarios, written so that a person can compare them.

Each trace lies in ``placements/POLICY.SCENARIO.json``. When a policy changes on purpose, write them
anew, and read the difference before it is committed::

    python tests/golden/placements.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.balancer.registry import POLICIES, build_policy
from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import (
    AttemptFailed,
    CancelAt,
    Deliver,
    Dispatch,
    DrainReplica,
    Fail,
    GoOn,
    LoadReported,
    Outputs,
    ReplicaBeat,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEffect,
    RouterEvent,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.machine import Tick
from headrace.types import FinishReason, Output, ReplicaId, ReportLoad, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = Path(__file__).parent / "placements"
BLOCK = 16
FACTS = ReplicaFacts(block_size=BLOCK, num_blocks=512, max_num_seqs=8, max_num_batched_tokens=256)
R0, R1, R2 = ReplicaId("r0"), ReplicaId("r1"), ReplicaId("r2")


class Play:
    """A Router with three replicas, and a line for each thing told or decided."""

    def __init__(self, policy: str) -> None:
        self.lines: list[str] = []
        self._router = Router(RouterLimits(max_outstanding=4), build_policy(policy))
        self._where: dict[str, ReplicaId] = {}
        self._now = 0.0
        for replica in (R0, R1, R2):
            self._router.handle(ReplicaReady(replica, FACTS), 0.0)

    def tell(self, event: RouterEvent, line: str, seconds: float = 0.1) -> None:
        self._now += seconds
        self.lines.append(f"{self._now:.1f} s: {line}")
        for effect in self._router.handle(event, self._now):
            self.lines.extend(f"  {said}" for said in self._lines_of(effect))

    def ask(self, name: str, *prompt_parts: tuple[int, int], choices: int = 1) -> None:
        """Ask with a prompt made of (first token, length) runs."""
        prompt = tuple(token for start, n in prompt_parts for token in range(start, start + n))
        chain = prompt_chain(b"golden", prompt, BLOCK)
        names = [name] if choices == 1 else [f"{name}#{index}" for index in range(choices)]
        requests = tuple(
            Request(id=RequestId(each), prompt=prompt, max_tokens=64, chain=chain) for each in names
        )
        self.tell(RequestArrived(requests), f"{name} asks {choices} x {len(prompt)} tokens")

    def step(self, *names: str, end: bool = False) -> None:
        """Let attempts draw a token where they are."""
        for name in names:
            finish = FinishReason.STOP if end else None
            output = Output(RequestId(name), (1,), finish, 0)
            replica = self._where[name]
            line = f"{name} {'ends' if end else 'draws a token'} at {replica}"
            self.tell(Outputs(replica, (output,)), line)

    def where(self, name: str) -> ReplicaId:
        """Where an attempt went."""
        return self._where[name]

    def attempt(self, name: str) -> str:
        """The last attempt of a request."""
        return max(each for each in self._where if each.partition("~")[0] == name)

    def _lines_of(self, effect: RouterEffect) -> list[str]:
        match effect:
            case Dispatch(replica, request, choice):
                self._where[request.id] = replica
                return [f"{request.id} to {replica}: {choice.reason}"]
            case GoOn(name, replica, reason, num_tokens):
                return [f"{name} leaves {replica} with {num_tokens} tokens: {reason}"]
            case CancelAt(replica, name):
                return [f"cancel {name} at {replica}"]
            case ReplicaJudged(replica, state, reason):
                return [f"{replica} is {state}: {reason}"]
            case Fail(name, code, reason):
                return [f"{name} fails, {code}: {reason}"]
            case ReplicaEmptied(replica):
                return [f"{replica} is empty"]
            case Deliver(outputs):
                return [f"{o.request_id} ends" for o in outputs if o.finish]
            case _:
                return [type(effect).__name__]


def chats_with_a_shared_beginning(play: Play) -> None:
    for name in "abcdef":
        play.ask(name, (0, 320), (1000 * ord(name), 32))
        play.step(name)
    play.ask("cold", (500_000, 320))


def long_prompts_among_short_ones(play: Play) -> None:
    play.ask("long", (0, 2000))
    for index in range(4):
        play.ask(f"short{index}", (10_000 * (index + 1), 50))
    play.step("long")
    play.ask("other", (90_000, 2000))
    play.ask("choices", (95_000, 100), choices=3)


def a_death_a_silence_and_a_drain(play: Play) -> None:
    for index in range(3):
        play.ask(f"q{index}", (1000 * index, 100))
        play.step(f"q{index}")
    play.tell(ReplicaBeat(R1), "r1 beats")
    play.tell(DrainReplica(R2, 10.0), "drain r2")
    play.tell(ReplicaLost(R0, "killed"), "r0 is killed")
    play.tell(Tick(), "time passes", seconds=2.9)
    play.tell(ReplicaReady(R0, FACTS), "r0 is back")
    play.tell(Tick(), "time passes", seconds=7.0)


def a_wait_in_vain_a_failure_and_a_poison(play: Play) -> None:
    for index in range(12):  # retries are a share of requests
        play.ask(f"q{index}", (1000 * index, 100))
        play.step(f"q{index}", end=True)
    for replica in (R0, R1, R2):
        play.tell(LoadReported(replica, load(1)), f"{replica} is idle")
    play.ask("late", (50_000, 100))
    where = play.where("late")
    play.tell(LoadReported(where, load(1, waiting=1)), f"{where} has not begun it", seconds=3.0)
    play.step(play.attempt("late"), end=True)
    for replica in (R1, R2):
        play.tell(DrainReplica(replica, 60.0), f"drain {replica}", seconds=5.0)
    play.ask("unlucky", (60_000, 100))
    failure = AttemptFailed(
        replica=R0,
        request_id=RequestId("unlucky"),
        code="overloaded",
        reason="it is full",
        retryable=True,
        busy_for=1.0,
    )
    play.tell(failure, "r0 refuses it for a second")
    play.tell(Tick(), "time passes", seconds=1.0)
    play.tell(Tick(), "time passes")
    play.tell(ReplicaLost(R0, "killed"), "r0 is killed")
    play.tell(ReplicaReady(R0, FACTS), "r0 is back")
    play.tell(ReplicaLost(R0, "killed"), "r0 is killed")
    play.tell(ReplicaReady(R0, FACTS), "r0 is back")
    play.ask("again", (60_000, 100))


def load(step: int, *, waiting: int = 0) -> ReportLoad:
    return ReportLoad(
        step=step,
        running=0,
        waiting=waiting,
        waiting_tokens=100 * waiting,
        kv_blocks_total=512,
        kv_blocks_free=512,
        kv_blocks_cached=0,
        prompt_tokens_total=0,
        cached_tokens_total=0,
        output_tokens_total=0,
        discarded_tokens_total=0,
        preemptions_total=0,
        step_seconds_total=0.0,
        computed_tokens_total=0,
    )


SCENARIOS: tuple[Callable[[Play], None], ...] = (
    chats_with_a_shared_beginning,
    long_prompts_among_short_ones,
    a_death_a_silence_and_a_drain,
    a_wait_in_vain_a_failure_and_a_poison,
)


def trace_of(scenario: Callable[[Play], None], policy: str) -> list[str]:
    """Play a scenario; return what was told and decided."""
    play = Play(policy)
    scenario(play)
    return play.lines


def path_of(scenario: Callable[[Play], None], policy: str) -> Path:
    return DIRECTORY / f"{policy}.{scenario.__name__}.json"


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        for policy in POLICIES:
            lines = trace_of(scenario, policy)
            path_of(scenario, policy).write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
