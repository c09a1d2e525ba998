"""What the demo asks, how much of it when, and what is done to the server meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.testing.streams import Asked

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from headrace.types import Seconds

GUIDES = (
    "You are a patient guide to the rivers and mills of a small country. Answer in plain words, "
    "with one example, and say where you are not sure. Keep to what a visitor can see in a day.",
    "You are the clerk of a canal company. You answer letters about tolls, locks and opening "
    "hours, politely and in full sentences, and you never promise what the company cannot keep.",
    "You are a teacher of mechanics. You explain water wheels, gears and turbines to children of "
    "ten, step by step, with things that they know from home.",
)
QUESTIONS = (
    "What should I see first, and why?",
    "How does the water get to the wheel?",
    "What happens when there is too little rain?",
    "Which is older, the bridge or the mill?",
    "How much can one wheel grind in a day?",
    "Why is the channel so narrow just before the wheel?",
    "What does the miller do at night?",
    "Can a boat pass the lock in winter?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The course of the demo. Times are shares of ``seconds``; rates are requests a second."""

    seconds: Seconds
    calm: float
    busy: float
    tokens: tuple[int, int] = (1, 1)  # of an answer, from and to
    rise: tuple[float, float] = (0.05, 0.25)
    fall: tuple[float, float] = (0.60, 0.70)
    kill: float = 0.42
    drain: float = 0.52

    def rate(self, at: Seconds) -> float:
        """Return the load at a time: calm, rising, busy, falling, calm."""
        share = at / self.seconds
        up = _ramp(share, *self.rise)
        down = _ramp(share, *self.fall)
        return self.calm + (self.busy - self.calm) * (up - down)

    def arrivals(self, rng: random.Random) -> Iterator[tuple[Seconds, Asked]]:
        """Yield requests with their times: a Poisson process of this rate, by thinning."""
        at = 0.0
        while (at := at + rng.expovariate(self.busy)) < self.seconds:
            if rng.random() < self.rate(at) / self.busy:
                yield at, self.asked(rng)

    def asked(self, rng: random.Random) -> Asked:
        question = f"{rng.choice(QUESTIONS)} (letter {rng.randrange(10_000)})"
        return Asked(
            prompt=f"{rng.choice(GUIDES)}\n\n{question}",
            max_tokens=rng.randint(*self.tokens),
            temperature=rng.choice((0.0, 0.7)),
            seed=rng.getrandbits(31),
            chat=True,
            may_stop=True,
        )


def _ramp(x: float, low: float, high: float) -> float:
    """Return 0 below ``low``, 1 above ``high``, and a smooth way between."""
    share = min(1.0, max(0.0, (x - low) / (high - low)))
    return 0.5 - 0.5 * math.cos(math.pi * share)
