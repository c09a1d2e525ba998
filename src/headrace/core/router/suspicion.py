"""Suspicion: which request killed a replica, and how innocent ones are told from it.

When a replica dies, whatever was there may have done it, or nobody. A request is suspected of a
death until it gets PASSED tokens further than it was then: then it has passed the place where it
would have killed, as engines draw the same tokens again. Who is suspected of ``deaths`` deaths in
a row is condemned if nobody else of that replica is: it fails, and quarantine.py remembers it.

If several are, they are tried one after another: one goes on, the others are held until it has
passed or ended, or a replica dies with it alone; then it is the one, others are cleared. More than
MAX_ON_TRIAL at once are no evidence against anybody: then ``max_migrations`` is the bound, as it is
for a request that kills at another place each time.

An innocent request is condemned only if replicas die ``deaths`` times, each time before it has come
PASSED tokens further than the time before, and nobody else there was hit as often. With one death
an hour for each replica and 10 s to begin anew, that are 0.3 % of those whose replica died once
while nothing else was there. Of prompts that nobody tokenised here (foreign replicas) nothing is
known, and nobody is suspected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.quarantine import Quarantine
    from headrace.core.router.requests import Attempt, Tracked
    from headrace.core.router.streams import Streams
    from headrace.types import RequestId, Seconds, Tokens

PASSED = 16
"""Tokens. Those drawn in the last steps of an engine that dies are not delivered: two steps in
flight, with some drafts each."""

MAX_ON_TRIAL = 8
PATIENCE: Seconds = 10.0
"""Nobody is held longer, and at most for half of ``max_wait``."""


class Verdict(NamedTuple):
    """A request that is condemned, and how many replicas died of it."""

    tracked: Tracked
    deaths: int


class Suspects(Protocol):
    """What Oversight asks when replicas die."""

    def note_death(self, attempts: Iterable[Attempt], now: Seconds) -> Verdict | None:
        """A replica died with these; return whose fault it was, if that is clear."""
        ...

    def hold(self, now: Seconds) -> None:
        """Those attempts were given up: hold whoever is to be tried later."""
        ...

    def resume(self) -> None:
        """Let the next one go if the trial at hand is over."""
        ...


class NoSuspicion:
    """Implements Suspects: nobody is ever to blame."""

    def note_death(self, attempts: Iterable[Attempt], now: Seconds) -> Verdict | None:
        """See Suspects."""
        return None

    def hold(self, now: Seconds) -> None:
        """See Suspects."""

    def resume(self) -> None:
        """See Suspects."""


@dataclass(slots=True)
class _Record:
    """Deaths in a row, and how many tokens were delivered at the first of them."""

    deaths: int
    reached: Tokens


class Suspicion:
    """Implements Suspects."""

    def __init__(
        self, streams: Streams, quarantine: Quarantine, *, deaths: int, max_wait: Seconds
    ) -> None:
        self._streams = streams
        self._quarantine = quarantine
        self._limit = deaths
        self._patience = min(PATIENCE, max_wait / 2)
        self._records: dict[RequestId, _Record] = {}
        self._on_trial: Tracked | None = None
        self._next: dict[RequestId, Tracked] = {}  # to be tried, in this order
        self._new: list[Tracked] = []  # of those, the ones of the death at hand

    def note_death(self, attempts: Iterable[Attempt], now: Seconds) -> Verdict | None:
        """See Suspects."""
        present = [attempt for attempt in attempts if attempt.tracked.request.prompt]
        alive = self._streams.alive
        self._records = {name: each for name, each in self._records.items() if name in alive}
        deaths = {attempt.tracked.id: self._suspect(attempt) for attempt in present}
        worst = [a.tracked for a in present if deaths[a.tracked.id] >= self._limit]
        if len(worst) == 1:
            return self._condemn(worst[0], deaths, now)
        if any(each is self._on_trial for each in worst):
            self._on_trial = None  # it was not alone
        if len(worst) <= MAX_ON_TRIAL:
            self._next.update({each.id: each for each in worst})
            self._new = worst
        return None

    def hold(self, now: Seconds) -> None:
        """See Suspects."""
        alive, held = self._streams.alive, self._streams.held
        for tracked in self._new:
            if tracked.id in alive:
                held.hold(tracked, now + self._patience, now, may_move=False)
        self._new = []
        self.resume()

    def resume(self) -> None:
        """See Suspects."""
        held = self._streams.held
        while self._next and (self._on_trial is None or self._is_over(self._on_trial)):
            self._on_trial = None
            request_id = next(iter(self._next))
            tracked = self._next.pop(request_id)
            if request_id in held:
                self._on_trial = tracked
                held.let_go(request_id)

    def _suspect(self, attempt: Attempt) -> int:
        """Return of how many deaths in a row a request is suspected, this one included."""
        tracked = attempt.tracked
        record = self._records.get(tracked.id)
        if record is None or self._has_passed(tracked):
            self._records[tracked.id] = _Record(1, len(tracked.tokens))
            return 1
        record.deaths += 1
        return record.deaths

    def _condemn(self, tracked: Tracked, present: Iterable[RequestId], now: Seconds) -> Verdict:
        """It explains this death, so that nobody else is suspected of anything for it."""
        self._quarantine.add(tracked.request, now)
        deaths = self._records[tracked.id].deaths
        for request_id in present:
            del self._records[request_id]
        if tracked is self._on_trial:
            self._on_trial = None
            for request_id in self._next:
                self._streams.held.let_go(request_id)
            self._next.clear()
        return Verdict(tracked, deaths)

    def _is_over(self, tracked: Tracked) -> bool:
        return tracked.id not in self._streams.alive or self._has_passed(tracked)

    def _has_passed(self, tracked: Tracked) -> bool:
        record = self._records.get(tracked.id)
        return record is None or len(tracked.tokens) >= record.reached + PASSED


def build_suspicion(limits: RouterLimits, streams: Streams, quarantine: Quarantine) -> Suspects:
    """Return what the limits ask for."""
    if not limits.poison_deaths:
        return NoSuspicion()
    return Suspicion(streams, quarantine, deaths=limits.poison_deaths, max_wait=limits.max_wait)
