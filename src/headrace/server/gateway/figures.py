"""What the gateway counts. Tokens of one step are observed together, so that one costs little."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from headrace.monitoring import table
from headrace.monitoring.goodput import NO_TARGETS, missed
from headrace.monitoring.shapes import Rates
from headrace.monitoring.windows import WINDOW_SECONDS, Spread, Window
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.monitoring.metrics import Registry
    from headrace.monitoring.records import Attempt, RequestRecord
    from headrace.types import Seconds, Tokens, Usage

_WELL = (FinishReason.STOP, FinishReason.LENGTH)


class Rate(IntEnum):
    """What is counted over the last minute."""

    REQUESTS = 0
    FAILURES = 1
    PROMPT_TOKENS = 2
    CACHED_TOKENS = 3
    WITH_TARGETS = 4
    WITHIN_TARGETS = 5


class Figures:
    """Counts one gateway's requests in a registry, and keeps the last minute of them."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.ttft = Spread()
        self.itl = Spread()
        self._window = Window()
        self._gap: Seconds = 0.0  # between two tokens, seen by ``_gap_tokens`` tokens
        self._gap_tokens: Tokens = 0
        self._gap_at: Seconds = 0.0

    def answered(self, route: str, status: int, seconds: Seconds) -> None:
        """An HTTP request was answered; status 499: the client left before."""
        self.registry.add(table.HTTP_REQUESTS, route, str(status))
        self.registry.observe(table.REQUEST_SECONDS, value=seconds)

    def connections(self, number: int) -> None:
        """So many client connections are open."""
        self.registry.put(table.CONNECTIONS, value=number)

    def key_refused(self, code: str) -> None:
        """Somebody may not come in."""
        self.registry.add(table.KEYS_REFUSED, code)

    def accepted(self, num_choices: int, prompt_tokens: Tokens) -> None:
        """Generations began."""
        self.registry.add(table.GENERATIONS_RUNNING, amount=num_choices)
        self.registry.observe(table.PROMPT_LENGTH, value=prompt_tokens, times=num_choices)

    def ended(self, finish: str, num_tokens: Tokens) -> None:
        """One generation ended, however."""
        self.registry.add(table.GENERATIONS_RUNNING, amount=-1)
        self.registry.add(table.GENERATIONS, finish)
        self.registry.observe(table.OUTPUT_LENGTH, value=num_tokens)

    def billed(self, usage: Usage, record: RequestRecord, now: Seconds) -> None:
        """A client request ended, as its record says: compare it with its targets too."""
        state = record.state
        self.settle()
        self.registry.add(table.PROMPT_TOKENS, amount=usage.prompt_tokens)
        self.registry.add(table.CACHED_TOKENS, amount=usage.cached_tokens)
        self.registry.add(table.OUTPUT_TOKENS, amount=usage.completion_tokens)
        counts = self._window.open(now)
        counts[Rate.REQUESTS] += 1
        counts[Rate.PROMPT_TOKENS] += usage.prompt_tokens
        counts[Rate.CACHED_TOKENS] += usage.cached_tokens
        if state not in _WELL and state != FinishReason.ABORT:
            counts[Rate.FAILURES] += 1
        if record.targets != NO_TARGETS:
            self._judge(record, now)

    def _judge(self, record: RequestRecord, now: Seconds) -> None:
        record.missed = missed(record.targets, record.pace(now), record.state)
        if record.missed is None:
            return
        priority = record.priority.value
        self.registry.add(table.WITH_TARGETS, priority)
        self._window.add(Rate.WITH_TARGETS, 1, now)
        if not record.missed:
            self.registry.add(table.WITHIN_TARGETS, priority)
            self._window.add(Rate.WITHIN_TARGETS, 1, now)
        for target in record.missed:
            self.registry.add(table.TARGETS_MISSED, priority, target)

    def first_token(self, seconds: Seconds, now: Seconds) -> None:
        """Since the request was read."""
        self.registry.observe(table.TIME_TO_FIRST_TOKEN, value=seconds)
        self.ttft.observe(seconds, now)

    def attempt_began(self, attempt: Attempt) -> None:
        """An attempt has its first token: what was predicted is held against what came."""
        choice = attempt.choice
        predicted = next(
            (score.cached_tokens for score in choice.scores if score.replica == choice.replica), 0
        )
        self.registry.add(table.PREDICTED_CACHED, choice.replica, amount=predicted)
        self.registry.add(table.ACTUAL_CACHED, choice.replica, amount=attempt.cached_tokens)
        if choice.predicted_ttft and attempt.first_at is not None:
            actual = attempt.first_at - attempt.dispatched_at
            self.registry.observe(table.TTFT_RATIO, value=actual / choice.predicted_ttft)

    def next_tokens(self, seconds: Seconds, num_tokens: Tokens, now: Seconds) -> None:
        """Since the tokens before; a step may bring several.

        Streams of one batch have the same gaps to the last bit: they are counted in one go.
        """
        gap = seconds if num_tokens == 1 else seconds / num_tokens
        if gap != self._gap:
            self.settle()
            self._gap = gap
        self._gap_tokens += num_tokens
        self._gap_at = now

    def overshoot(self, num_tokens: Tokens) -> None:
        """Tokens that came behind a stop string."""
        self.registry.add(table.OVERSHOOT_TOKENS, amount=num_tokens)

    def settle(self) -> None:
        """Write down the tokens seen last; to be called before figures are read."""
        if self._gap_tokens:
            self.registry.observe(table.INTER_TOKEN, value=self._gap, times=self._gap_tokens)
            self.itl.observe(self._gap, self._gap_at, self._gap_tokens)
            self._gap_tokens = 0

    def rates(self, now: Seconds) -> Rates:
        """Return the last minute's. Output tokens count when they come, the rest at the end."""
        self.settle()
        counts = self._window.counts(now)
        seconds = self._window.seconds(now)
        prompt_tokens = counts[Rate.PROMPT_TOKENS]
        return Rates(
            window=min(seconds, WINDOW_SECONDS),
            requests=counts[Rate.REQUESTS] / seconds,
            failures=counts[Rate.FAILURES] / seconds,
            prompt_tokens=prompt_tokens / seconds,
            output_tokens=(self.ttft.count(now) + self.itl.count(now)) / seconds,
            cached_share=counts[Rate.CACHED_TOKENS] / prompt_tokens if prompt_tokens else 0.0,
            with_targets=counts[Rate.WITH_TARGETS] / seconds,
            goodput=counts[Rate.WITHIN_TARGETS] / seconds,
        )
