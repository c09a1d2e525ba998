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

OWED_SHARE = 0.05
"""Of the device's time, what a class that has work gets whatever better ones want."""

TURN: Seconds = 1.0
"""A class goes first once it is owed so much (or a whole step), until it has got it."""

MOST_OWED = 4  # turns


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
        self._has_turn = [False] * NUM_RANKS

    def ranks(self) -> list[int]:
        """Return the classes in the order of this step: those whose turn it is first."""
        return sorted(range(NUM_RANKS), key=lambda rank: (not self._has_turn[rank], rank))

    def has_turn(self, rank: int) -> bool:
        """Whether a class goes before better ones now."""
        return self._has_turn[rank]

    def note(self, *, wants: Sequence[bool], got: Sequence[Seconds], seconds: Seconds) -> None:
        """Take into account a step of ``seconds``, of which ``got[rank]`` went to each class that
        has work."""
        turn = max(seconds, TURN)
        for rank, has_work in enumerate(wants):
            owed = self._owed[rank] + OWED_SHARE * seconds - got[rank] if has_work else 0.0
            self._owed[rank] = owed = min(max(owed, 0.0), MOST_OWED * turn)
            self._has_turn[rank] = owed >= turn or (self._has_turn[rank] and owed > 0)
