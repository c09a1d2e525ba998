"""A KV cache that serves one request after the other, for tests of what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.table import BlockTable
from headrace.types import BlockKey, block_key

SIZE = 4
ROOT = b"root"


class Ask(NamedTuple):
    """A request for a chain of named blocks."""

    at: float
    names: tuple[int, ...]
    owner: Owner = Owner()


def chain_of(names: tuple[int, ...]) -> list[bytes]:
    """Digests with the names in their last bytes, spread as real ones are."""
    return [(name * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little") * 4 for name in names]


def table_of(ask: Ask) -> BlockTable:
    table = BlockTable([0] * (len(ask.names) * SIZE + 1), SIZE, ROOT)
    table.chain = chain_of(ask.names)
    table.owner = ask.owner
    return table


@dataclass
class Cache:
    """``lost`` and ``found`` are names, in order, of all that was evicted and hit."""

    num_blocks: int
    config: EvictionConfig = field(default_factory=EvictionConfig)
    lost: list[int] = field(default_factory=list)
    found: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kv = KVCache(
            num_blocks=self.num_blocks,
            block_size=SIZE,
            share_partial=False,
            eviction=self.config,
        )
        self._names: dict[BlockKey, int] = {}

    def serve(self, ask: Ask) -> int:
        """Compute a request at once; return how many of its blocks were found."""
        kv, table = self.kv, table_of(ask)
        kv.evictor.advance(ask.at)
        num_found = kv.take_cached(table) // SIZE
        self.found += ask.names[:num_found]
        assert kv.grow(table, len(ask.names) * SIZE)
        kv.publish(table, len(ask.names) * SIZE)
        kv.release(table, after=None)
        self._names |= dict(zip(map(block_key, table.chain), ask.names, strict=True))
        if changes := kv.index.take_changes():
            self.lost += [self._names[key] for key in changes.removed]
        return num_found

    def holds(self, name: int) -> bool:
        (digest,) = chain_of((name,))
        return self.kv.index.find(digest) is not None


def traffic(seed: int, num: int, *, rate: float = 2.0) -> list[Ask]:
    """Conversations with sessions that pause for ten seconds or so, and one-shots among them."""
    rng = Random(seed)
    asks: list[Ask] = []
    names = iter(range(100, 1 << 30))
    at = 0.0
    for number in range(num):
        at += rng.expovariate(rate)
        if rng.random() < 0.6:
            asks.append(Ask(at, (0, *(next(names) for _ in range(rng.randint(2, 9))))))
            continue
        blocks, turn_at = [1, 2], at
        for _ in range(rng.randint(2, 8)):
            blocks += [next(names) for _ in range(rng.randint(1, 4))]
            asks.append(Ask(turn_at, tuple(blocks), Owner(session=f"s{number}")))
            turn_at += rng.uniform(8, 16)
    return sorted(asks, key=lambda ask: ask.at)
