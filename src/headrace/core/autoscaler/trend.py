"""Trend: whether the need of a pool has lasted long enough to change the number of replicas."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from headrace.core.autoscaler.forecast import Hold, Smoothed, StartTime
from headrace.core.autoscaler.need import IDLE, FlowMeter, need_of

if TYPE_CHECKING:
    from headrace.core.autoscaler.config import AutoscalerConfig
    from headrace.core.autoscaler.events import PoolLoad
    from headrace.types import Seconds

_GROWN = 1.5
"""A need so many times what was last asked for does not wait for the newcomers."""


class Pending:
    """Replicas that start count, until they had the time to start and to take over work."""

    def __init__(self, config: AutoscalerConfig) -> None:
        self._margin = config.start_margin
        self._start_time = StartTime(config.start_guess)
        self._until: Seconds = -inf
        self._asked = 0  # replicas, at the last step out

    @property
    def start_seconds(self) -> Seconds:
        """How long a start takes."""
        return self._start_time.seconds

    def expect(self, asked: int, now: Seconds) -> None:
        """A step out: there will be so many replicas."""
        self._asked = asked
        self._until = now + self._start_time.seconds + self._margin

    def came(self, seconds: Seconds, now: Seconds) -> None:
        """One has become ready."""
        self._start_time.update(seconds)
        self._until = max(self._until, now + self._margin)

    def may_suffice(self, wanted: int, now: Seconds) -> bool:
        """Whether to wait for them first; not when the need has grown beyond what was asked."""
        return now < self._until and wanted <= _GROWN * self._asked


class Trend:
    """Sees every load report and every decision."""

    def __init__(self, config: AutoscalerConfig) -> None:
        self._config = config
        self._short = Smoothed(config.short_window)
        self._long = Smoothed(config.long_window)
        self._pending = Pending(config)
        self._above = Hold()
        self._below = Hold()
        self._need = IDLE
        self._flow = FlowMeter()
        self._decided_at: Seconds = -inf

    @property
    def wanted(self) -> float:
        """Replicas that the need has asked for without a break, or on average."""
        return max(self._short.value, self._above.least)

    def update(self, load: PoolLoad, now: Seconds, *, present: int) -> None:
        """Take a load report; ``present`` replicas serve or are starting."""
        self._need = need_of(load, self._config, flow=self._flow.update(load, now))
        self._short.update(self._need.replicas, now)
        self._long.update(self._need.replicas, now)
        mean = self._short.value
        self._above.update(self._need.replicas, mean, now, holds=mean > present)
        room = self._config.sensitivity * (present - 1)
        self._below.update(self._need.replicas, mean, now, holds=self._lasting() <= room)

    def started(self, seconds: Seconds, now: Seconds) -> None:
        """A replica has become ready: give it time to take over work."""
        self._pending.came(seconds, now)

    def grew(self, asked: int, now: Seconds) -> None:
        """The load has made the pool grow to ``asked`` replicas."""
        self._pending.expect(asked, now)
        self._decided(now)

    def shrank(self, now: Seconds) -> None:
        """The load has made the pool shrink."""
        self._decided(now)

    def _decided(self, now: Seconds) -> None:
        self._decided_at = now
        self._above.restart()
        self._below.restart()

    def may_grow(self, wanted: int, now: Seconds, *, present: int) -> bool:
        """Whether the need has lasted, and neither time nor those who are starting meet it."""
        if not self._above.has_held(self._config.scale_out_after) or self._cools_down(now):
            return False
        if self._above.seconds_until(present) < self._pending.start_seconds:
            return False  # a newcomer would find nothing to do
        return not self._pending.may_suffice(wanted, now)

    def may_shrink(self, now: Seconds) -> bool:
        """Whether one fewer would have been enough for so long that a restart is not soon."""
        patience = max(self._config.scale_in_after, self._pending.start_seconds)
        return self._below.has_held(patience) and not self._cools_down(now)

    def growth_reason(self) -> str:
        """Why more, in figures."""
        return f"needs {self.wanted:.1f} replicas: {self._need.reason}"

    def shrink_reason(self, present: int) -> str:
        """Why one fewer, in figures."""
        share = self._lasting() / (present - 1) if present > 1 else 0.0
        return (
            f"{present - 1} would be loaded to {share:.0%} of their limits, "
            f"below {self._config.sensitivity:.0%}"
        )

    def _lasting(self) -> float:
        """The need that a smaller pool must bear: the larger of both means."""
        return max(self._short.value, self._long.value)

    def _cools_down(self, now: Seconds) -> bool:
        return now - self._decided_at < self._config.cooldown
