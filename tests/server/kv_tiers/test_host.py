"""HostTier: least recently used goes first."""

from __future__ import annotations

import numpy as np

from headrace.server.kv_tiers.host import HostTier


def digest_of(number: int) -> bytes:
    return bytes([number]) * 32


def read(tier: HostTier, number: int) -> bool:
    block = np.zeros(10, np.uint8)
    found = tier.read_into(digest_of(number), block)
    assert not found or (block == number).all()
    return found


def test_the_block_that_was_used_least_recently_makes_room():
    tier = HostTier(max_bytes=39, block_bytes=10)
    for number in (1, 2, 3):
        assert tier.put(digest_of(number), np.full(10, number, np.uint8)) is None
    assert read(tier, 1)
    assert tier.put(digest_of(4), np.full(10, 4, np.uint8)) == digest_of(2)
    assert [read(tier, number) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert tier.used_bytes == 30


def test_a_block_that_is_put_again_takes_no_second_place():
    tier = HostTier(max_bytes=30, block_bytes=10)
    for _ in range(5):
        assert tier.put(digest_of(1), np.full(10, 1, np.uint8)) is None
    assert tier.used_bytes == 10
