"""When requests are sent. Arrival times are drawn before the run, from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from headrace.bench.config import OpenLoop
    from headrace.types import Seconds


def arrival_times(arrivals: OpenLoop, *, count: int, rng: np.random.Generator) -> list[Seconds]:
    """Return ``count`` times from 0 on, ascending; the first request comes at once."""
    if arrivals.constant:
        return [index / arrivals.rate for index in range(count)]
    times: list[Seconds] = []
    at = 0.0
    for _ in range(count):
        times.append(at)
        at += float(rng.exponential(1 / arrivals.rate))
    return times
