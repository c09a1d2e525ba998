"""Retry budget: retries in proportion to requests, so that a bad day does not double the load.

Attempts that failed unanswered while their replica lives are paid from it, and those that are moved
because they wait in vain (hedging.py), which leave RETRIES_TO_BEGIN_WITH to the others. What was
answered, or died with its replica, goes on without asking: those attempts are bounded for each
request (``max_migrations``), and a replica's whole load must find a new place at once.
"""

from __future__ import annotations

RETRIES_TO_BEGIN_WITH = 3.0
MAX_SAVED = 1000.0  # so that a quiet month does not pay for a storm


class RetryBudget:
    """Never more retries than ``share`` x requests + 3."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = RETRIES_TO_BEGIN_WITH

    def earn(self, num_requests: int) -> None:
        """Note new requests."""
        self._tokens = min(MAX_SAVED, self._tokens + self._share * num_requests)

    def spend(self, *, leave: float = 0.0) -> bool:
        """Take one retry if there is one, and ``leave`` more."""
        if self._tokens < 1 + leave:
            return False
        self._tokens -= 1
        return True
