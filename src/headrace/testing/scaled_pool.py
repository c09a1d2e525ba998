"""ScaledPool: an Autoscaler and a pool of replicas as a fluid, in virtual time.

Work arrives in tokens a second and waits in one queue; every replica that is ready computes
``rate`` tokens a second of it. Starts take ``start_seconds``; a draining replica is empty after
``drain_seconds``. Every event is followed by the machine's ``check_integrity()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from headrace.core.autoscaler.events import (
    AutoscalerEffect,
    AutoscalerEvent,
    BeginDrain,
    EndDrain,
    PoolLoad,
    RangeAsked,
    ReplicaDown,
    ReplicaEmpty,
    ReplicaLoad,
    ReplicaUp,
    Scaled,
    Stage,
    StartReplica,
    StopReplica,
)
from headrace.core.autoscaler.machine import Autoscaler
from headrace.errors import InvariantBroken
from headrace.machine import Tick
from headrace.testing.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.autoscaler.config import AutoscalerConfig
    from headrace.types import ReplicaId, Seconds

REPORT_SECONDS = 0.25
"""Between two load reports, as gateways send them."""

_TOKENS_PER_REQUEST = 200


class ScaledPool:
    """``work(now)`` is what arrives, in tokens a second. ``rate``: of one replica."""

    def __init__(
        self,
        config: AutoscalerConfig,
        *,
        work: Callable[[Seconds], float],
        rate: float = 1000.0,
        start_seconds: Seconds = 4.0,
        drain_seconds: Seconds = 1.0,
    ) -> None:
        self.machine = Autoscaler(config)
        self.journal: Journal[AutoscalerEvent, AutoscalerEffect] = Journal()
        self.now: Seconds = 0.0
        self.queue = 0.0  # tokens
        self.computed = 0.0  # tokens, by every replica that is ready
        self._work = work
        self._rate = rate
        self._start_seconds = start_seconds
        self._drain_seconds = drain_seconds
        self._due: list[tuple[Seconds, ReplicaId, AutoscalerEvent]] = []

    @property
    def ready(self) -> list[ReplicaId]:
        """Replicas that take work."""
        stages = self.machine.stages()
        return [name for name, (stage, _) in stages.items() if stage is Stage.READY]

    @property
    def decisions(self) -> list[tuple[Seconds, Scaled]]:
        """Every change of the number of replicas, with its time."""
        return [
            (entry.now, effect)
            for entry in self.journal.entries
            for effect in entry.effects
            if isinstance(effect, Scaled)
        ]

    def set_range(self, floor: int, ceiling: int) -> None:
        """An operator's order."""
        self.feed(RangeAsked(floor, ceiling))

    def run(self, until: Seconds) -> None:
        """Let time pass."""
        while self.now < until:
            self.now = round(self.now + REPORT_SECONDS, 6)
            self._work_off()
            self._deliver_what_is_due()
            wakeup = self.machine.next_wakeup()
            if wakeup is not None and wakeup <= self.now:
                self.feed(Tick())
            self.feed(self.load())

    def feed(self, event: AutoscalerEvent) -> None:
        """Handle one event now, check everything, perform what comes of it."""
        effects = self.machine.handle(event, self.now)
        self.journal.observe(event, self.now, effects)
        self.machine.check_integrity()
        wakeup = self.machine.next_wakeup()
        if wakeup is not None and wakeup <= self.now:
            raise InvariantBroken(f"M3: woken at {wakeup}, now is {self.now}")
        for effect in effects:
            self._perform(effect)

    def load(self) -> PoolLoad:
        """What gateways say."""
        ready = self.ready
        each = self.queue / max(1, len(ready))
        return PoolLoad(
            waiting=0 if ready else int(self.queue / _TOKENS_PER_REQUEST),
            waiting_tokens=0 if ready else int(self.queue),
            predicted_ttft=each / self._rate if ready else None,
            replicas=tuple(
                ReplicaLoad(
                    replica=name,
                    outstanding=int(each / _TOKENS_PER_REQUEST) + 1,
                    prefill_tokens=int(each),
                    kv_used=0.0,
                    prefill_rate=self._rate,
                    computed_tokens=int(self.computed),
                )
                for name in ready
            ),
        )

    def _work_off(self) -> None:
        arrived = self._work(self.now) * REPORT_SECONDS
        possible = len(self.ready) * self._rate * REPORT_SECONDS
        done = min(possible, self.queue + arrived)
        self.queue += arrived - done
        self.computed += done / max(1, len(self.ready))

    def _perform(self, effect: AutoscalerEffect) -> None:
        match effect:
            case StartReplica(name):
                self._later(name, self._start_seconds, ReplicaUp(name, self._start_seconds))
            case BeginDrain(name):
                self._later(name, self._drain_seconds, ReplicaEmpty(name))
            case EndDrain(name):
                self._forget(name)
            case StopReplica(name):
                self._forget(name)
                self._later(name, REPORT_SECONDS, ReplicaDown(name, restarts=False))
            case Scaled():
                pass
            case _:
                assert_never(effect)

    def _later(self, name: ReplicaId, seconds: Seconds, event: AutoscalerEvent) -> None:
        self._due.append((self.now + seconds, name, event))

    def _forget(self, name: ReplicaId) -> None:
        self._due = [due for due in self._due if due[1] != name]

    def _deliver_what_is_due(self) -> None:
        due = [each for each in self._due if each[0] <= self.now]
        self._due = [each for each in self._due if each[0] > self.now]
        for _, _, event in due:
            self.feed(event)
