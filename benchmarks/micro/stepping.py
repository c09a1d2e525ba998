"""An EngineCore whose every event is timed, and the requests that it is loaded with.

Times are processor time of the thread: what else the machine does is not in them. The simulated
executor's own work is not either.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import Emit, Execute, StepDone, Submit
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor, StepTime
from headrace.machine import Tick
from headrace.types import PriorityClass, Request, RequestId

if TYPE_CHECKING:
    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.events import EngineEvent
    from headrace.core.scheduler.plan import StepPlan
    from headrace.types import TokenId, Tokens

VOCABULARY = 49_152
NUM_TENANTS = 7
STEP_TIME = StepTime(base=0.02, per_prefill=0.0, per_decode=0.0, per_context=0.0)
"""With it, a load report is due in one of 25 steps, whatever runs."""

LATER = 1e9  # s: a time that does not come


def simulated_spec(*, num_blocks: int, block_size: Tokens, max_model_len: Tokens) -> ExecutorSpec:
    """Return what the simulated executor offers."""
    return ExecutorSpec(
        model_identity="simulated",
        vocab_size=VOCABULARY,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        block_bytes=0,
    )


class TimedCore:
    """Feeds an EngineCore and runs its steps; ``ended`` are the requests that ended."""

    def __init__(self, spec: ExecutorSpec, config: SchedulerConfig) -> None:
        self.core = build_engine_core(spec, config)
        self.now = 0.0
        self.ended: list[RequestId] = []
        self._executor = SimulatedExecutor(spec, STEP_TIME)
        self._plans: deque[StepPlan] = deque()

    def feed(self, event: EngineEvent) -> float:
        """Handle an event; return its milliseconds."""
        begin = time.thread_time_ns()
        effects = self.core.handle(event, self.now)
        spent = time.thread_time_ns() - begin
        for effect in effects:
            if isinstance(effect, Execute):
                self._plans.append(effect.plan)
            elif isinstance(effect, Emit):
                self.ended += [o.request_id for o in effect.outputs if o.finish is not None]
        return spent / 1e6

    def submit(self, request: Request) -> float:
        """Submit a request; return the milliseconds."""
        return self.feed(Submit(request))

    def go_on(self) -> list[float]:
        """Let what is put off go on while the device is busy; return the events' milliseconds."""
        times: list[float] = []
        slices = self.core.scheduler.kv.slices
        while (wakeup := slices.next_wakeup()) is not None:
            self.now = wakeup
            times.append(self.feed(Tick()))
        return times

    def step(self) -> tuple[StepPlan, float]:
        """Let the oldest step end; return it and the milliseconds of what follows."""
        plan = self._plans.popleft()
        result = self._executor.execute(plan)
        self.now += result.seconds
        return plan, self.feed(StepDone(plan.step_id, result))


class Requests:
    """Makes requests that differ in tenant, class and text, with the digests of their blocks."""

    def __init__(self, block_size: Tokens) -> None:
        self._block_size = block_size
        self._root = chain_root(salt=b"", model_identity="simulated", block_size=block_size)
        self._number = 0

    def make(
        self, length: Tokens, max_tokens: Tokens, *, prefix: tuple[TokenId, ...] = ()
    ) -> Request:
        """Return the next request, of ``length`` tokens; targets are far away."""
        number = self._number
        self._number += 1
        rest = length - len(prefix)
        prompt = prefix + tuple([(number * 7919 + i * 31) % VOCABULARY for i in range(rest)])
        return Request(
            id=RequestId(f"r{number}"),
            prompt=prompt,
            max_tokens=max_tokens,
            chain=prompt_chain(self._root, prompt, self._block_size),
            chain_root=self._root,
            tenant=f"tenant{number % NUM_TENANTS}",
            priority=tuple(PriorityClass)[number % len(PriorityClass)],
            deadline=LATER if number % 2 else None,
            first_token_by=LATER if number % 3 else None,
        )


def describe_run(command: list[str]) -> dict[str, str]:
    """Return what a result says of where it was made."""
    return {
        "command": " ".join(["python", *command]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")
