"""Guard: when odds are followed, and when no longer."""

from __future__ import annotations

from itertools import count

from headrace.core.kvcache.eviction.guard import SLICE, Guard
from headrace.core.kvcache.eviction.marks import Owner, visit_of
from headrace.core.kvcache.eviction.odds import ReuseOdds

KIND = visit_of(0, Owner(), 1, 100).kind


def judged(guard: Guard, *, by_age: float, by_odds: float, names: count[int]) -> bool:
    """Give the shadows some hits, and uses that are none until the next judgement."""
    guard._by_age.hits, guard._by_odds.hits = by_age, by_odds
    for _ in range(256):
        guard.used([next(names).to_bytes(32, "little")])
        guard.work()
    return guard.follows_odds


def test_odds_are_followed_for_a_clear_gain_and_given_up_when_it_shrinks():
    guard, names = Guard(64, ReuseOdds()), count(1)
    assert not judged(guard, by_age=100, by_odds=160, names=names)  # too few to tell
    assert judged(guard, by_age=100, by_odds=180, names=names)
    assert judged(guard, by_age=100, by_odds=105, names=names)
    assert not judged(guard, by_age=100, by_odds=101, names=names)


def test_shadows_live_through_a_slice_with_each_event():
    guard = Guard(64, ReuseOdds())
    for number in range(3 * SLICE):
        guard.used([number.to_bytes(32, "little")])
    for expected in (2 * SLICE, SLICE, 0, 0):
        guard.work()
        assert guard._num_told == expected


def test_a_shadow_counts_a_hit_for_what_it_still_holds():
    guard = Guard(2, ReuseOdds())
    digests = [number.to_bytes(32, "little") for number in range(3)]
    for at, digest in enumerate(digests):
        guard.used([digest])
        guard.released([digest], KIND, at, float(at))
    for digest in (digests[0], digests[2]):
        guard.used([digest])
    guard.work()
    assert guard._by_age.hits == 1  # of two places, the last two digests have them
