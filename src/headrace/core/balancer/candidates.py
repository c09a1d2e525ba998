"""Candidates: the replicas that may take a request, without a pair made for each of them.

Of many replicas few hold any of a prompt. A policy that looks at all of them sees a sequence of
Candidate; one that is content with a sample asks for ``few``, and the others cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, overload

from headrace.core.balancer.policy import Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.core.balancer.policy import ReplicaView
    from headrace.types import ReplicaId, Tokens

_CACHED = itemgetter(1)


class Takers(NamedTuple):
    """Replicas that may take something, whatever it is: made once, used until one of them changes.

    ``alike``: they have one weight, nobody else uses them, and none is a canary. ``bare``: the
    candidates for a prompt of which nobody has anything.
    """

    order: Sequence[ReplicaView]
    names: Mapping[ReplicaId, ReplicaView]
    alike: bool
    bare: Sequence[Candidate]


def takers_of(order: Sequence[ReplicaView]) -> Takers:
    """Look once at what seldom changes."""
    weight = order[0].facts.weight if order else 0.0
    alike = all(
        view.facts.weight == weight and not view.facts.canary and not view.past_us for view in order
    )
    names = {view.replica: view for view in order}
    return Takers(order, names, alike, [Candidate(view, 0) for view in order])


class Candidates(Sequence[Candidate]):
    """``takers``, of whom ``cached`` says who is believed to have how much of one prompt.

    ``cached`` may name replicas that are no candidates, and names none that has nothing.
    """

    __slots__ = ("_bare", "_cached", "_names", "_order", "alike")

    def __init__(self, takers: Takers, cached: Mapping[ReplicaId, Tokens]) -> None:
        self._order, self._names, self.alike, self._bare = takers
        self._cached = cached

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...

    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(index, slice):
            return [self._candidate(view) for view in self._order[index]]
        return self._candidate(self._order[index])

    def __iter__(self) -> Iterator[Candidate]:
        return map(self._candidate, self._order)

    def pairs(self) -> list[Candidate]:
        """Return all of them."""
        get = self._cached.get
        return [
            Candidate(bare.view, tokens) if (tokens := get(bare.view.replica, 0)) else bare
            for bare in self._bare
        ]

    def find(self, replica: ReplicaId) -> Candidate | None:
        """Return the candidate of that name."""
        view = self._names.get(replica)
        return None if view is None else self._candidate(view)

    def holders(self, num: int) -> list[Candidate]:
        """Return those that hold most of the prompt, the first ``num``, the most first."""
        names, found = self._names, list[Candidate]()
        for name, tokens in sorted(self._cached.items(), key=_CACHED, reverse=True):
            if len(found) == num:
                break
            if name in names:
                found.append(Candidate(names[name], tokens))
        return found

    def few(self, num: int, turn: int) -> list[Candidate]:
        """Return ``num`` of them, if there are as many; first those that hold most of the prompt.

        These are half at most, the others come from the ``turn``-th on, round and round: whoever
        adds ``num // 2`` each time meets them all.
        """
        order, get = self._order, self._cached.get
        num = min(num, len(order))
        found = self.holders(num // 2)
        taken = {view.replica for view, _ in found}
        start = turn % len(order)
        window = order[start : start + num]
        for view in (*window, *order[: num - len(window)]):
            if len(found) == num:
                break
            name = view.replica
            if name not in taken:
                found.append(Candidate(view, get(name, 0)))
        return found

    def _candidate(self, view: ReplicaView) -> Candidate:
        return Candidate(view, self._cached.get(view.replica, 0))


def as_candidates(candidates: Sequence[Candidate]) -> Candidates:
    """Return any candidates as such."""
    if isinstance(candidates, Candidates):
        return candidates
    takers = takers_of([each.view for each in candidates])
    return Candidates(takers, {view.replica: n for view, n in candidates if n})
