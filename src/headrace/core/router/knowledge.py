"""How well a replica's prefix cache is known: what was heard of it, and what came true.

``Feed`` follows its numbered changes, whose frames may be lost, repeated or overtake each other.
``Truth`` holds what was predicted of its cache against what it found there. Both know one replica.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, StrEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.types import Seconds, Tokens

LISTING_PATIENCE: Seconds = 5.0
"""Until a listing that did not come is asked for again."""

WINDOW = 32  # predictions that are remembered
MEMORY: Seconds = 60.0
"""A prediction older than this says nothing of now: a replica that gets no requests because it
was found wanting is believed again."""

MIN_PREDICTIONS = 4  # before which nothing is made of them
DOUBT_BELOW = 0.90  # of the predicted tokens were found
TRUST_FROM = 0.95


class KvKnowledge(StrEnum):
    """How well a replica's prefix cache is known."""

    EXACT = "exact"  # every change was heard, and what is predicted comes true
    DEGRADED = "degraded"  # a change was missed, or predictions do not come true
    APPROXIMATE = "approximate"  # it says nothing: what was sent there


class Heard(Enum):
    """What a report of a replica means."""

    OLD = "old"  # said before, or in an earlier life: it changes nothing
    NEWS = "news"  # to be added to what is known
    ANEW = "anew"  # what was known is void, and this is added to nothing


class Feed:
    """Follows one replica's changes, numbered from 1 in each of its lives (``epoch``).

    ``number`` is the highest that was heard of. With a gap nothing but a listing at least as new
    as that makes it whole again, since whatever comes late is not taken. A replica that does not
    ``list`` its blocks is not asked: it says of itself when it knows what it has.
    """

    def __init__(self, epoch: int = 0, *, lists: bool = True) -> None:
        self.lists = lists
        self.epoch = epoch
        self.number = 0
        self.is_heard = False
        self.missed = ""  # what was, empty unless there is a gap
        self.asks_at = self._at_once  # when a listing is to be asked for, with a gap

    @property
    def is_uncertain(self) -> bool:
        """Whether nothing was heard, or something missed that cannot be asked for."""
        return not self.is_heard or (bool(self.missed) and not self.lists)

    def change(self, epoch: int, number: int) -> Heard:
        """Take the number of a change."""
        if epoch < self.epoch or (epoch == self.epoch and number <= self.number):
            return Heard.OLD
        anew = self._enter(epoch)
        if number > self.number + 1:
            self._miss(_changes(self.number + 1, number - 1, "missed"))
        self.number = number
        return Heard.ANEW if anew else Heard.NEWS

    def listing(self, epoch: int, number: int) -> Heard:
        """Take the number of the change that a listing of everything is made after."""
        if epoch < self.epoch:
            return Heard.OLD
        is_older = epoch == self.epoch and number < self.number
        if is_older and not self.missed:
            return Heard.OLD
        self._enter(epoch)
        self.asks_at = self._at_once  # this was the answer
        if not is_older:
            self.number = number
            self.missed = ""
        return Heard.ANEW

    def latest(self, number: int) -> None:
        """Take the number of the latest change of this life, which should be here by now."""
        if self.is_heard and number > self.number:
            self._miss(_changes(self.number + 1, number, "told of, and did not come"))
            self.number = number

    def wants_listing(self, now: Seconds) -> bool:
        """Whether to ask for one now; takes it that it is asked for then."""
        if not self.missed or now < self.asks_at:
            return False
        self.asks_at = now + LISTING_PATIENCE
        return True

    def _enter(self, epoch: int) -> bool:
        """Go on in this life; return whether it is new here."""
        if self.is_heard and epoch == self.epoch:
            return False
        self.epoch, self.number, self.missed, self.asks_at = epoch, 0, "", self._at_once
        self.is_heard = True
        return True

    @property
    def _at_once(self) -> Seconds:
        return -inf if self.lists else inf

    def _miss(self, what: str) -> None:
        if not self.missed:
            self.missed = what


def _changes(first: int, last: int, what: str) -> str:
    if first == last:
        return f"change {first} was {what}"
    return f"changes {first} to {last} were {what}"


class _Prediction(NamedTuple):
    at: Seconds
    claimed: Tokens
    found: Tokens  # of the claimed ones
    surplus: Tokens  # found though nobody had claimed them


class Truth:
    """What became of the latest predictions of one replica's cached tokens."""

    def __init__(self) -> None:
        self._predictions: deque[_Prediction] = deque()
        self._claimed: Tokens = 0  # sums of the predictions
        self._found: Tokens = 0
        self._surplus: Tokens = 0
        self.in_doubt = False  # too much of what is claimed is not found

    def __len__(self) -> int:
        return len(self._predictions)

    @property
    def share(self) -> float | None:
        """Of the claimed tokens, those that were found, 0 to 1. None: too few to say."""
        return self._found_of(self._claimed)

    @property
    def accuracy(self) -> float | None:
        """1 - the error of predictions, claims too small included, over all they were about."""
        return self._found_of(self._claimed + self._surplus)

    @property
    def discount(self) -> float:
        """What to multiply a claim with: 1 unless claims have proved too large."""
        share = self.share
        return 1.0 if share is None or not self.in_doubt else share

    @property
    def forgets_at(self) -> Seconds:
        """When the oldest prediction is too old to mean anything."""
        return self._predictions[0].at + MEMORY if self._predictions else inf

    def note(self, claimed: Tokens, found: Tokens, tolerance: Tokens, now: Seconds) -> None:
        """A request found ``found`` cached tokens where ``claimed`` were predicted.

        An error below ``tolerance`` is none: caches hold whole blocks, and compute a last token.
        """
        if abs(claimed - found) < tolerance:
            found = claimed
        if claimed or found:
            part = min(claimed, found)
            self._predictions.append(_Prediction(now, claimed, part, found - part))
            self._count(self._predictions[-1], 1)
            if len(self._predictions) > WINDOW:
                self._count(self._predictions.popleft(), -1)
            self._judge()

    def forget(self, now: Seconds) -> None:
        """Drop what is too old to mean anything."""
        while self.forgets_at <= now:
            self._count(self._predictions.popleft(), -1)
        self._judge()

    def _found_of(self, total: Tokens) -> float | None:
        if len(self._predictions) < MIN_PREDICTIONS or not total:
            return None
        return self._found / total

    def _count(self, prediction: _Prediction, sign: int) -> None:
        self._claimed += sign * prediction.claimed
        self._found += sign * prediction.found
        self._surplus += sign * prediction.surplus

    def _judge(self) -> None:
        share = self.share
        limit = TRUST_FROM if self.in_doubt else DOUBT_BELOW
        self.in_doubt = share is not None and share < limit
