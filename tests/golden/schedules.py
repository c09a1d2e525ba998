"""Schedules of a few small scenarios, written so that a person can read and compare them.

Each scenario's trace lies in ``schedules/NAME.json``. When a policy changes on purpose, write them
anew, and read the difference before it is committed::

    python tests/golden/schedules.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    EngineEffect,
    EngineEvent,
    Execute,
    KvChanged,
    Reject,
    StepDone,
    StepFailed,
    Submit,
)
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import PriorityClass, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headrace.core.scheduler.plan import Row, StepPlan
    from headrace.testing.harness import EngineHarness
    from headrace.types import Output

DIRECTORY = Path(__file__).parent / "schedules"
SPEC = simulated_spec(num_blocks=12, block_size=4)


def request_of(
    name: str,
    prompt: Sequence[int],
    max_tokens: int = 4,
    stop: tuple[int, ...] = (),
    *,
    tenant: str = "default",
    priority: PriorityClass = PriorityClass.STANDARD,
    itl: float | None = None,
    first_token_by: float | None = None,
) -> Request:
    return Request(
        id=RequestId(name),
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        stop_token_ids=stop,
        sampling=GREEDY,
        tenant=tenant,
        priority=priority,
        itl=itl,
        first_token_by=first_token_by,
    )


def decodes_beside_a_long_prefill() -> EngineHarness:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=10, order=Order.ARRIVAL)
    engine = simulated_engine(SPEC, config)
    engine.submit(request_of("chat", range(5), max_tokens=5))
    engine.finish_step()
    engine.submit(request_of("long", range(100, 126), max_tokens=2))
    engine.submit(request_of("late", [7, 8], max_tokens=2))
    return engine


def a_group_shares_its_prefix() -> EngineHarness:
    spec = simulated_spec(num_blocks=12, block_size=8)
    engine = simulated_engine(spec, SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16))
    for member in range(3):
        prompt = [*range(30), 50 + member, 60, 61]
        engine.submit(request_of(f"member{member}", prompt, max_tokens=2))
    return engine


def the_newest_is_preempted() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(preemption=Preemption.LAST_IN))
    engine.submit(request_of("old", range(16), max_tokens=16))
    engine.submit(request_of("new", range(100, 116), max_tokens=9))
    return engine


def a_big_one_is_passed_and_then_a_barrier() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_passes=2, order=Order.ARRIVAL))
    engine.submit(request_of("runs", range(16), max_tokens=8))
    engine.submit(request_of("big", range(100, 140), max_tokens=2))
    for index in range(4):
        engine.submit(request_of(f"small{index}", [200 + index], max_tokens=3))
        engine.finish_step()
    return engine


def two_steps_in_flight() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_steps_in_flight=2))
    plain = undisturbed(request_of("stops", [1, 2, 3]), SPEC).tokens
    engine.submit(request_of("stops", [1, 2, 3], stop=plain[1:2]))
    engine.submit(request_of("ends", [4, 5, 6], max_tokens=3))
    return engine


def abort_and_failure() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=1))
    for name in ("goes", "fails", "waits"):
        engine.submit(request_of(name, [ord(letter) for letter in name], max_tokens=3))
    engine.abort(RequestId("goes"))
    engine.finish_step()
    engine.finish_step(failed="out of memory")
    return engine


def classes_go_before_each_other() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=16))
    batch, interactive = PriorityClass.BATCH, PriorityClass.INTERACTIVE
    engine.submit(request_of("batch0", range(6), max_tokens=6, priority=batch))
    engine.submit(request_of("batch1", range(10, 16), max_tokens=6, priority=batch))
    engine.finish_step()
    engine.submit(request_of("standard", range(20, 26), max_tokens=2))
    engine.submit(request_of("quick", range(30, 36), max_tokens=2, priority=interactive))
    return engine


def tenants_take_turns() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=1))
    for index in range(4):
        prompt = range(10 * index, 10 * index + 3)
        engine.submit(request_of(f"greedy{index}", prompt, max_tokens=2, tenant="greedy"))
    for index in range(2):
        prompt = range(100 + 10 * index, 103 + 10 * index)
        engine.submit(request_of(f"modest{index}", prompt, max_tokens=2, tenant="modest"))
    return engine


def short_ones_pass_a_long_one() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8))
    engine.submit(request_of("long", range(28), max_tokens=2))
    engine.submit(request_of("short0", range(100, 105), max_tokens=2))
    engine.finish_step()
    engine.submit(request_of("short1", range(200, 205), max_tokens=2))
    return engine


def chunks_keep_a_target() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=4))
    engine.submit(request_of("talks", range(4), max_tokens=8, itl=0.018))
    engine.submit(request_of("reads", range(100, 128), max_tokens=2))
    return engine


def the_one_with_least_regret_is_preempted() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig())
    engine.submit(request_of("old, has little to lose", range(8), max_tokens=28))
    engine.submit(request_of("new, has much to lose", range(100, 124), max_tokens=12))
    return engine


def what_comes_too_late_is_refused() -> EngineHarness:
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=1))
    engine.submit(request_of("runs", range(4), max_tokens=16))
    for _ in range(10):
        engine.finish_step()
    soon, later = engine.now + 0.01, engine.now + 10
    engine.submit(request_of("hasty", range(10, 30), max_tokens=2, first_token_by=soon))
    engine.submit(request_of("patient", range(30, 40), max_tokens=2, first_token_by=later))
    return engine


SCENARIOS: tuple[Callable[[], EngineHarness], ...] = (
    decodes_beside_a_long_prefill,
    a_group_shares_its_prefix,
    the_newest_is_preempted,
    a_big_one_is_passed_and_then_a_barrier,
    two_steps_in_flight,
    abort_and_failure,
    classes_go_before_each_other,
    tenants_take_turns,
    short_ones_pass_a_long_one,
    chunks_keep_a_target,
    the_one_with_least_regret_is_preempted,
    what_comes_too_late_is_refused,
)


def trace_of(scenario: Callable[[], EngineHarness]) -> list[str]:
    """Play a scenario to its end; return a line for each thing told or decided."""
    engine = scenario()
    engine.run_until_idle()
    lines: list[str] = []
    for entry in engine.journal.entries:
        lines.append(line_of(entry.event))
        for effect in entry.effects:
            lines.extend(f"  {line}" for line in lines_of(effect))
    return lines


def line_of(event: EngineEvent) -> str:
    match event:
        case Submit(request):
            return f"submit {request.id}: {len(request.prompt)} tokens, max {request.max_tokens}"
        case Abort(request_id):
            return f"abort {request_id}"
        case StepDone(step_id):
            return f"step {step_id} is done"
        case StepFailed(step_id, reason):
            return f"step {step_id} failed: {reason}"
        case _:
            return "tick"


def lines_of(effect: EngineEffect) -> Iterator[str]:
    match effect:
        case Execute(plan):
            yield from plan_lines(plan)
        case Emit(outputs):
            for output in outputs:
                if output.timing is not None:
                    yield begin_line(output)
                if output.finish is not None:
                    yield f"{output.request_id} ends: {output.finish}"
        case Reject(request_id, code, reason):
            yield f"refuse {request_id}: {code}: {reason}"
        case KvChanged(number, stored, removed):
            yield f"cache {number}: {len(stored)} stored, {len(removed)} removed"
        case _:
            return


def begin_line(output: Output) -> str:
    timing = output.timing
    assert timing is not None
    again = f", put back {timing.preemptions} times" if timing.preemptions else ""
    return (
        f"{output.request_id} begins: waited {timing.waited:.4f} s, "
        f"{timing.prefill:.4f} s in {timing.chunks} chunks{again}"
    )


def plan_lines(plan: StepPlan) -> Iterator[str]:
    ends = f", ends {[*plan.ends]}" if plan.ends else ""
    copies = "".join(f", copies {source} to {target}" for source, target in plan.copies)
    yield f"plan {plan.step_id}{ends}{copies}"
    starts = {start.sequence for start in plan.starts}
    yield from (row_line(row, begins=row.sequence in starts) for row in plan.rows)


def row_line(row: Row, *, begins: bool) -> str:
    what = "the unseen token" if row.tokens is None else f"{row.num_tokens} tokens"
    return (
        f"  {'starts' if begins else 'goes on'} {row.sequence}: {what} at {row.start} "
        f"in {[*row.blocks]}{', samples' if row.samples else ''}"
    )


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        path = DIRECTORY / f"{scenario.__name__}.json"
        path.write_text(json.dumps(trace_of(scenario), indent=1) + "\n")


if __name__ == "__main__":
    main()
