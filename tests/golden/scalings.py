"""What the Autoscaler decides in agreed stories, as JSON beside this file.

A change of a decision changes them: write them anew and look at the difference
before it is committed::

    python tests/golden/scalings.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.events import DrainAsked, ReplicaDown, Scaled
from headrace.testing.scaled_pool import ScaledPool
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.core.autoscaler.events import AutoscalerEffect

DIRECTORY = Path(__file__).parent / "scalings"


def a_day_in_ten_minutes() -> ScaledPool:
    """Load rises to three replicas' worth and falls again, by default settings."""
    pool = ScaledPool(AutoscalerConfig(), work=lambda now: max(0.0, 2600.0 - abs(now - 200) * 20))
    pool.set_range(1, 4)
    pool.run(600)
    return pool


def a_burst_onto_a_slow_start() -> ScaledPool:
    pool = ScaledPool(
        AutoscalerConfig(short_window=1.0),
        work=lambda now: 5000.0 if 40 <= now < 50 else 200.0,
        start_seconds=30.0,
    )
    pool.set_range(1, 6)
    pool.run(300)
    return pool


def an_operator_and_two_deaths() -> ScaledPool:
    pool = ScaledPool(AutoscalerConfig(), work=lambda now: 300.0)
    pool.set_range(2, 2)
    pool.run(10)
    pool.feed(DrainAsked(ReplicaId("r0")))
    pool.run(20)
    pool.feed(ReplicaDown(ReplicaId("r1"), restarts=False))
    pool.run(30)
    pool.set_range(3, 4)
    pool.run(60)
    return pool


SCENARIOS: tuple[Callable[[], ScaledPool], ...] = (
    a_day_in_ten_minutes,
    a_burst_onto_a_slow_start,
    an_operator_and_two_deaths,
)


def trace_of(scenario: Callable[[], ScaledPool]) -> list[str]:
    """Play a scenario; return a line for each decision."""
    return [
        line for entry in scenario().journal.entries for line in _lines(entry.now, entry.effects)
    ]


def _lines(now: float, effects: tuple[AutoscalerEffect, ...]) -> Iterator[str]:
    for effect in effects:
        match effect:
            case Scaled(desired, present, reason):
                yield f"{now:g} s: {present} to {desired}: {reason}"
            case _:
                yield f"  {type(effect).__name__} {effect.replica}"


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        path = DIRECTORY / f"{scenario.__name__}.json"
        path.write_text(json.dumps(trace_of(scenario), indent=1) + "\n")


if __name__ == "__main__":
    main()
