"""Pace: how much one step may hold so that everybody who runs gets the next token in time.

The step-time model says how long a step with its decodes takes; what the tightest inter-token
target leaves of it is filled with chunks of prompts. So the token budget follows from targets and
from the device; ``max_num_batched_tokens`` is only what the device can hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.costs.step_model import StepLoad, StepModel, num_pairs

if TYPE_CHECKING:
    from headrace.core.scheduler.step import Step
    from headrace.types import Seconds, Tokens

MIN_CHUNK: Tokens = 16
"""What a step computes of prompts even if its decodes alone miss the target: prompts must come to
an end."""

AIM = 0.95
"""Of a target, what steps are planned to take where nine of ten keep their prediction; where they
spread more, so much less that nine of ten keep the target."""

UNLIMITED: Seconds = float("inf")


class Pace:
    """Sizes steps by ``model``. ``itl`` is the target of those who name none, None for no limit;
    ``batch_itl`` that of the batch class among itself."""

    def __init__(
        self, model: StepModel, *, itl: Seconds | None = None, batch_itl: Seconds | None = None
    ) -> None:
        self.model = model
        self._itl = UNLIMITED if itl is None else itl
        self._batch_itl = UNLIMITED if batch_itl is None else batch_itl

    @property
    def aim(self) -> float:
        """Of a target, what steps are planned to take."""
        return min(AIM, 1 / self.model.spread)

    def target(self, itl: Seconds | None, *, yields: bool) -> Seconds:
        """Return the inter-token target of a sequence that asks for ``itl``."""
        if itl is not None:
            return itl
        return self._batch_itl if yields else self._itl

    def begin(self, step: Step, target: Seconds) -> None:
        """Leave in a step with all its decodes what ``target`` leaves for the rest: nothing if
        they come near it, less than nothing if they miss it by themselves."""
        step.seconds = UNLIMITED
        if target < UNLIMITED:
            seconds = self.model.seconds(step.load())
            left = target - seconds
            step.seconds = left if left < 0 else max(self.aim * target - seconds, 0)

    def chunk(self, step: Step, start: Tokens) -> Tokens:
        """Return how many tokens from ``start`` may still be added to a step."""
        if step.seconds == UNLIMITED:
            return step.budget
        if step.seconds < 0 and not step.num_prefill:  # decodes alone take too long
            return min(step.budget, MIN_CHUNK)
        return min(step.budget, self.model.prefill_within(step.seconds, start))

    def add_chunk(self, step: Step, start: Tokens, num_tokens: Tokens) -> None:
        """Take note of a chunk."""
        step.budget -= num_tokens
        step.num_prefill += num_tokens
        step.num_pairs += num_pairs(start, num_tokens)
        step.seconds -= self.model.recompute_seconds(num_tokens, start)

    def may_decode(self, step: Step, context: Tokens) -> bool:
        """Whether one more decode with ``context`` tokens fits, and if so take note of it."""
        costs = self.model.coefficients
        seconds = costs.decode + costs.decode_context * context
        if not step.budget or (seconds > step.seconds and step.rows):
            return False
        step.budget -= 1
        step.num_decodes += 1
        step.context += context
        step.seconds -= seconds
        return True

    def predicted(self, step: Step) -> Seconds:
        """Return how long a step will take."""
        return self.model.seconds(step.load())

    def learn(self, load: StepLoad, seconds: Seconds) -> None:
        """Take note of a step that was run."""
        self.model.observe(load, seconds)
