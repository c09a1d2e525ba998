"""In which order requests are served: change the policy here.

1. **Class**: interactive before standard before batch. A class that was passed over is owed a small
   share of the time meanwhile, so none starves (``Patience``).
2. **Tenant**: within a class, whoever has received least, by weight (fairness.py).
3. **Latest start**: within a tenant, the request that must begin first to keep its target:
   ``due - work``. A request that asks for nothing is due after a while that grows with its own
   work, so that a short prompt does not wait behind a long one, and a long one is passed only by
   what came within its patience: nobody waits for ever.

It knows no queue and no time: deadlines come with requests.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import Request, Seconds


class Order(StrEnum):
    """How requests of one class and tenant are ordered."""

    DUE = "due"
    ARRIVAL = "arrival"  # and no classes either: first come, first served


RANKS = {PriorityClass.INTERACTIVE: 0, PriorityClass.STANDARD: 1, PriorityClass.BATCH: 2}
NUM_RANKS = len(RANKS)
BATCH_RANK = RANKS[PriorityClass.BATCH]

DUE_AFTER: Seconds = 1.0
"""When a request that asks for nothing would like its first token, beside its own work."""

STRETCH = 4.0
"""And how many times its own work it may take."""

SHORTEST: Seconds = 1e-6

OWED_SHARE = 0.05
"""Of the time in which a class is passed over, what it is given all the same."""


def rank_of(request: Request, order: Order) -> int:
    """Return a request's class as a number, most urgent first."""
    return RANKS[request.priority] if order is Order.DUE else RANKS[PriorityClass.STANDARD]


def latest_start(request: Request, order: Order, *, now: Seconds, work: Seconds) -> Seconds:
    """Return when a request that comes ``now`` must begin; ``work`` is its uncached prompt."""
    if order is Order.ARRIVAL:
        return 0.0  # all alike: arrival decides
    if request.first_token_by is not None:
        return request.first_token_by - work
    due = now + DUE_AFTER + STRETCH * work
    return (due if request.deadline is None else min(due, request.deadline)) - work


class Patience:
    """What each class is owed because better ones went before it."""

    def __init__(self) -> None:
        self._owed = [0.0] * NUM_RANKS
        self._price: Seconds = SHORTEST  # of going first once: the last step

    def ranks(self) -> list[int]:
        """Return the classes in the order of this step: those owed a whole step first."""
        return sorted(range(NUM_RANKS), key=lambda rank: (not self.is_owed(rank), rank))

    def is_owed(self, rank: int) -> bool:
        """Whether a class has waited long enough to go before better ones."""
        return self._owed[rank] >= self._price

    def note(self, *, passed: Sequence[bool], seconds: Seconds) -> None:
        """Take into account a step of ``seconds``; ``passed[rank]``: that class got nothing."""
        self._price = max(seconds, SHORTEST)
        for rank, was_passed in enumerate(passed):
            if was_passed:
                self._owed[rank] += OWED_SHARE * seconds
            else:
                self._owed[rank] = max(0.0, self._owed[rank] - seconds)
