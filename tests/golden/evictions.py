"""What each order of eviction loses of a small generated traffic, written for people to compare.

When an order changes on purpose, write them anew, and read the difference before it is committed::

    python tests/golden/evictions.py
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.eviction.config import ORDERS, EvictionConfig
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.table import BlockTable
from headrace.types import block_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.types import BlockKey

DIRECTORY = Path(__file__).parent / "evictions"
SIZE = 4
NUM_BLOCKS = 48
WAITING = 4


def trace_of(order: str) -> list[str]:
    """Serve sessions and one-shots, some waited for, some pinned; a line for what each costs."""
    kv = KVCache(
        num_blocks=NUM_BLOCKS,
        block_size=SIZE,
        share_partial=False,
        eviction=EvictionConfig(order=order, tenant_share=0.6),
    )
    tables = list(requests())
    lines, names = [], {}
    for number, (chain, table) in enumerate(tables):
        kv.evictor.advance(float(number))
        for later in tables[number + 1 :][:WAITING]:
            kv.evictor.expect(later[1], number)
        kv.evictor.forget(table)
        found = kv.take_cached(table) // SIZE
        kv.grow(table, len(chain) * SIZE)
        kv.publish(table, len(chain) * SIZE)
        kv.release(table, after=None)
        names |= dict(zip(map(block_key, table.chain), chain, strict=True))
        lines.append(f"{number}: {chain[-1]} finds {found} of {len(chain)}{lost(kv, names)}")
    return lines


def requests() -> Iterator[tuple[list[str], BlockTable]]:
    rng = Random(11)
    for number in range(90):
        session = number % 5 if number % 3 else 5 + number
        turns = 1 + number // 15 if session < 5 else rng.randint(1, 4)
        chain = [f"{session}.{depth}" for depth in range(2 * turns)]
        owner = Owner(
            tenant="red" if session < 3 else "blue",
            session=f"s{session}" if session < 5 else "",
            retention=20.0 if session == 4 else None,
            num_prompt_blocks=len(chain),
        )
        yield chain, table_of(chain, owner)


def table_of(chain: list[str], owner: Owner) -> BlockTable:
    table = BlockTable([0] * (len(chain) * SIZE + 1), SIZE, b"golden")
    table.chain = [name.encode().rjust(8, b".") * 4 for name in chain]
    table.owner = owner
    return table


def lost(kv: KVCache, names: dict[BlockKey, str]) -> str:
    changes = kv.index.take_changes()
    if changes is None or not changes.removed:
        return ""
    return f", loses {' '.join(names[key] for key in changes.removed)}"


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for order in ORDERS:
        (DIRECTORY / f"{order}.json").write_text(json.dumps(trace_of(order), indent=1) + "\n")


if __name__ == "__main__":
    main()
