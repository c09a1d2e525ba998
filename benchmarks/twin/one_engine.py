"""One engine in virtual time: the real EngineCore, steps that take as long as a real model's.

For benchmarks of what the scheduler decides. Everything is read off events and effects: which
tokens of whose requests each step computed, and when each request's tokens came. Step times are
those of ``executor_speed.py`` (``read_step_time``), or the simulated executor's own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import Emit, Execute, Reject, Submit
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor, StepTime
from headrace.server.engine import scheduler_config
from headrace.server.settings import EngineSettings
from headrace.twin.device import SimulatedDevice
from headrace.twin.simulator import SimulatedDriver, Simulator
from headrace.types import Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.events import EngineEffect, EngineEvent, Output
    from headrace.core.scheduler.plan import Row, StepPlan
    from headrace.machine import Tick
    from headrace.types import Seconds, SequenceId, TokenId, Tokens

MEASURED = Path(__file__).parents[1] / "results" / "executor_speed.json"
VOCABULARY = 49_152


@dataclass(slots=True, eq=False)
class Story:
    """What became of a request. Times are seconds of the simulation."""

    request: Request
    arrived: Seconds
    times: list[Seconds] = field(default_factory=list)  # of its tokens
    end: str = ""  # how: a FinishReason, or the code of a refusal

    @property
    def ttft(self) -> Seconds | None:
        """To the first token."""
        return self.times[0] - self.arrived if self.times else None

    @property
    def mean_gap(self) -> Seconds:
        """Between two tokens; 0 with fewer than two."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1) if self.times else 0.0

    @property
    def gaps(self) -> list[Seconds]:
        """Between each two tokens."""
        return [after - before for before, after in pairwise(self.times)]

    def is_good(self, ttft: Seconds, mean_gap: Seconds) -> bool:
        """Whether it ended in full, inside both limits."""
        first = self.ttft
        return (
            self.end == "length"
            and first is not None
            and first <= ttft
            and (self.mean_gap <= mean_gap)
        )


@dataclass(frozen=True, slots=True)
class Service:
    """What a step did for a request: ``seconds`` is its part of the step, by the cost of rows."""

    at: Seconds  # the step's end
    request: RequestId
    prefill: Tokens
    decodes: Tokens
    again: Tokens  # of ``prefill``, those that had been computed before
    seconds: Seconds


class OneEngine:
    """Runs requests; ``stories``, ``services`` and ``steps`` say what came of it."""

    def __init__(
        self, config: SchedulerConfig, step_time: StepTime, *, kv_tokens: Tokens, block: Tokens = 32
    ) -> None:
        spec = ExecutorSpec(
            model_identity="simulated",
            vocab_size=VOCABULARY,
            max_model_len=8192,
            block_size=block,
            num_blocks=kv_tokens // block,
            block_bytes=0,
        )
        self.stories: dict[RequestId, Story] = {}
        self.services: list[Service] = []
        self.steps: list[Seconds] = []  # how long each took
        self.num_restarts = 0  # of preempted sequences
        self.dropped_tokens = 0  # that those had computed: what keeping nothing would cost
        self._simulator = Simulator()
        self._step_time = step_time
        self._device = SimulatedDevice(
            SimulatedExecutor(spec, step_time), lambda: self._simulator.now, self._step_done
        )
        self._driver: SimulatedDriver[EngineEvent, EngineEffect] = SimulatedDriver(
            self._simulator,
            build_engine_core(spec, config),
            perform=self._device.perform,
            observe=self._observe,
        )
        self._accepted: list[Request] = []  # SequenceId is the index
        self._reached: dict[SequenceId, Tokens] = defaultdict(int)  # computed once, at least

    def run(self, arrivals: Iterable[tuple[Seconds, Request]], until: Seconds) -> None:
        """Let requests arrive and things happen until ``until``."""
        for when, request in arrivals:
            self.stories[request.id] = Story(request, when)
            self._driver.feed_at(when, Submit(request))
        self._simulator.run(until)

    def _step_done(self, when: Seconds, event: EngineEvent) -> None:
        self._driver.feed_at(when, event)

    def _observe(
        self, event: EngineEvent | Tick, now: Seconds, effects: Sequence[EngineEffect]
    ) -> None:
        refused = {effect.request_id for effect in effects if isinstance(effect, Reject)}
        if isinstance(event, Submit) and event.request.id not in refused:
            self._accepted.append(event.request)
        for effect in effects:
            if isinstance(effect, Emit):
                for output in effect.outputs:
                    self._take(output, now)
            elif isinstance(effect, Reject):
                self.stories[effect.request_id].end = effect.code
            elif isinstance(effect, Execute):
                self._note(effect.plan, now)

    def _take(self, output: Output, now: Seconds) -> None:
        story = self.stories[output.request_id]
        story.times += [now] * len(output.tokens)
        if output.finish is not None:
            story.end = output.finish.value

    def _note(self, plan: StepPlan, now: Seconds) -> None:
        """Share a step out among its requests. One step at a time is in flight: it begins now."""
        seconds = self._step_time.of(plan.rows)
        self.steps.append(seconds)
        for start in plan.starts:
            if reached := self._reached.get(start.sequence):
                self.num_restarts += 1
                self.dropped_tokens += reached
        weights = [self._weight(row) for row in plan.rows]
        whole = sum(weights)
        for row, weight in zip(plan.rows, weights, strict=True):
            prefill, decodes = tokens_of(row)
            end = row.start + prefill + decodes
            again = min(end, self._reached[row.sequence]) - row.start
            self._reached[row.sequence] = max(self._reached[row.sequence], end)
            self.services.append(
                Service(
                    at=now + seconds,
                    request=self._accepted[row.sequence].id,
                    prefill=prefill,
                    decodes=decodes,
                    again=max(0, again),
                    seconds=seconds * weight / whole,
                )
            )

    def _weight(self, row: Row) -> Seconds:
        """Return what a row costs beyond the step's base."""
        return self._step_time.of((row,)) - self._step_time.base


def tokens_of(row: Row) -> tuple[Tokens, Tokens]:
    """Return how many tokens of a prompt and of output a row computes; drafts are neither."""
    number = row.num_tokens - row.num_drafts
    return (0, 1) if number == 1 else (number, 0)


def server_config(settings: Sequence[str] = ()) -> SchedulerConfig:
    """Return what an engine runs with, with ``name=value`` of section ``engine`` changed.

    Any number may wait. Raises msgspec.ValidationError for an unknown name or a bad value.
    """
    changed = dict(setting.split("=", 1) for setting in settings)
    chosen = msgspec.convert(changed, EngineSettings, strict=False)
    return replace(scheduler_config(chosen), max_num_waiting=1 << 20)


class Texts:
    """Makes requests whose prompts differ, but for a common ``prefix``; ids begin with ``name``."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._number = 0

    def tokens(self, length: Tokens) -> tuple[TokenId, ...]:
        """Return random tokens."""
        return tuple(self._rng.integers(0, VOCABULARY, length).tolist())

    def request(
        self, length: Tokens, max_tokens: Tokens, *, prefix: tuple[TokenId, ...] = ()
    ) -> Request:
        """Return the next request, of ``length`` prompt tokens; nothing else is set."""
        self._number += 1
        return Request(
            id=RequestId(f"{self._name}{self._number}"),
            prompt=prefix + self.tokens(length - len(prefix)),
            max_tokens=max_tokens,
        )

    def poisson(self, rate: float, seconds: Seconds, begin: Seconds = 0.0) -> Iterator[Seconds]:
        """Yield arrival times at ``rate`` a second for ``seconds``."""
        at = begin
        while (at := at + float(self._rng.exponential(1 / rate))) < begin + seconds:
            yield at


def read_step_time(path: Path, config: str = "auto") -> StepTime:
    """Fit a step's time to what ``executor_speed.py`` measured; context costs as by default.

    Its shapes: ``dN`` decodes, ``pN`` a prompt, ``mN+M`` both; decodes have its context.
    """
    document = json.loads(path.read_text())
    context = int(document["context"])
    rows: list[tuple[float, float, float, float]] = []
    for shape, times in document["steps"][config].items():
        first, _, second = shape[1:].partition("+")
        decodes = 0 if shape[0] == "p" else int(first)
        prefill = int(first) if shape[0] == "p" else int(second or 0)
        attended = decodes * (context + 1) + prefill
        seconds = times["median_ms"] / 1000 - attended * StepTime().per_context
        rows.append((1.0, prefill, decodes, seconds))
    return fit_step_time(rows)


def fit_step_time(rows: Sequence[tuple[float, float, float, float]]) -> StepTime:
    """Return the least relative squares of (1, prefill, decodes) -> seconds, none negative."""
    scaled = np.array([[value / row[3] for value in row[:3]] for row in rows])
    solution = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)[0]
    base, prefill, decode = np.maximum(solution, 0.0).tolist()
    return StepTime(base=base, per_prefill=prefill, per_decode=decode)


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
