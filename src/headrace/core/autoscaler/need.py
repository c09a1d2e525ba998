"""How many replicas a load needs: pure functions of what the gateways say.

The need is a number of replicas at their limits. It is the largest of five; each is proportional
to the load, so that ``need / n`` is the share of their limits that n replicas would be loaded to
(and n - 1 replicas, N/(N-1) times as much):

- time: the predicted time to a first token against the target;
- work: seconds of queued uncached prompt tokens against the same target (the measure that llm-d
  and KEDA scale prefill by: tokens in flight / rate / threshold);
- memory: KV blocks held by running requests, or their number, against the limit;
- room: requests that no replica has room for.

These say when there are too few replicas. Where there are enough, time and work are near 0 however
busy they are; so what they compute is measured too:

- flow: prompt tokens computed a second against what a replica can compute.

More replicas than requests help nobody, so it is never more than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.core.autoscaler.config import AutoscalerConfig
    from headrace.core.autoscaler.events import PoolLoad
    from headrace.types import Seconds


FLOW_SECONDS = 2.0
"""Between two measurements of what replicas compute."""


class Need(NamedTuple):
    """A number of replicas, and the figures it was made of, for people."""

    replicas: float
    reason: str


IDLE = Need(0.0, "no work")


def need_of(load: PoolLoad, config: AutoscalerConfig, *, flow: Need = IDLE) -> Need:
    """Return what ``load`` needs. ``flow`` is what a FlowMeter said last."""
    running = sum(replica.outstanding for replica in load.replicas)
    largest = max(
        (
            flow,
            _time(load, config),
            _work(load, config),
            _memory(load, config),
            _room(load, running),
        ),
        key=lambda need: need.replicas,
    )
    requests = load.waiting + running
    if largest.replicas <= max(requests, flow.replicas):
        return largest
    return max(flow, Need(float(requests), f"{requests} requests"))


def flow_of(load: PoolLoad, before: PoolLoad, seconds: Seconds) -> Need:
    """Return the need by what was computed in the ``seconds`` since ``before``.

    Counters of a replica that was restarted, or is new, tell nothing yet.
    """
    earlier = {replica.replica: replica.computed_tokens for replica in before.replicas}
    busy = 0.0
    for replica in load.replicas:
        tokens = replica.computed_tokens - earlier.get(replica.replica, replica.computed_tokens)
        if replica.prefill_rate > 0 and tokens > 0:
            busy += min(1.0, tokens / seconds / replica.prefill_rate)
    share = busy / max(1, len(load.replicas))
    return Need(busy, f"replicas compute prompts {share:.0%} of the time")


class FlowMeter:
    """Measures the flow over spans that are long beside those between an engine's reports."""

    def __init__(self) -> None:
        self._flow = IDLE
        self._before: tuple[PoolLoad, Seconds] | None = None

    def update(self, load: PoolLoad, now: Seconds) -> Need:
        """Take a report; return the flow that was measured last."""
        before, since = self._before or (load, now)
        if now - since >= FLOW_SECONDS:
            self._flow = flow_of(load, before, now - since)
        if self._before is None or now - since >= FLOW_SECONDS:
            self._before = load, now
        return self._flow


def _time(load: PoolLoad, config: AutoscalerConfig) -> Need:
    ttft = load.predicted_ttft or 0.0
    reason = f"predicted TTFT {ttft:.2f} s of {config.target_ttft:g} s"
    return Need(len(load.replicas) * ttft / config.target_ttft, reason)


def _work(load: PoolLoad, config: AutoscalerConfig) -> Need:
    rates = [replica.prefill_rate for replica in load.replicas if replica.prefill_rate > 0]
    if not rates:
        return IDLE
    tokens = load.waiting_tokens + sum(replica.prefill_tokens for replica in load.replicas)
    rate = sum(rates) / len(rates)
    reason = f"{tokens} queued tokens at {rate:.0f} tokens/s, wanted in {config.target_ttft:g} s"
    return Need(tokens / rate / config.target_ttft, reason)


def _memory(load: PoolLoad, config: AutoscalerConfig) -> Need:
    used = sum(replica.kv_used for replica in load.replicas)
    mean = used / max(1, len(load.replicas))
    seats = sum(
        replica.outstanding / replica.max_num_seqs
        for replica in load.replicas
        if replica.max_num_seqs
    )
    if seats > used / config.kv_limit:
        return Need(seats, f"running batches {seats / len(load.replicas):.0%} full")
    return Need(used / config.kv_limit, f"KV caches {mean:.0%} full of {config.kv_limit:.0%}")


def _room(load: PoolLoad, running: int) -> Need:
    if not load.waiting or not running:
        return Need(0.0, "room for all")
    need = len(load.replicas) * (running + load.waiting) / running
    return Need(need, f"{load.waiting} requests without a replica, {running} with one")
