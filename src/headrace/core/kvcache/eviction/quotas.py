"""Quotas: how much of the cache each tenant's content takes, and who goes first for that.

A tenant with more free cached blocks than its share loses its own oldest before anybody else loses
one. Nothing is evicted for a quota alone: while there is room, everybody may use it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.types import BlockId


class Quotas(Protocol):
    """Who goes first because of what a tenant has."""

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], *, yields: bool) -> None:
        """Count free cached blocks for their tenants; ``yields``: they may go for the quota."""
        ...

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Count blocks no more."""
        ...

    def surplus(self) -> BlockId | None:
        """Return the block that goes before all others, if one does."""
        ...


class NoQuotas:
    """Nobody goes first."""

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], *, yields: bool) -> None:
        """Nothing to count."""

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Nothing to count."""

    def surplus(self) -> BlockId | None:
        """None."""
        return None


class TenantQuotas:
    """``max_per_tenant`` blocks each. O(1) per block; those over it are few, as shares add up."""

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._tenants: dict[BlockId, str] = {}
        self._counts: Counter[str] = Counter()
        self._yielding: dict[str, OrderedDict[BlockId, None]] = {}  # neither wanted nor pinned
        self._surplus: dict[str, None] = {}  # a dict as an ordered set

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], *, yields: bool) -> None:
        """Count blocks for who used them last; ``yields``: they may be taken for the quota."""
        for block, mark in zip(blocks, marks, strict=True):
            self._add(block, mark.visit.owner.tenant, yields=yields)

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Count blocks no more. Raises KeyError."""
        for block in blocks:
            self._remove(block)

    def surplus(self) -> BlockId | None:
        """Return the oldest block of the tenant that is most over its quota."""
        over = [tenant for tenant in self._surplus if tenant in self._yielding]
        if not over:
            return None
        most = max(over, key=lambda tenant: self._counts[tenant])
        return next(iter(self._yielding[most]))

    def _add(self, block: BlockId, tenant: str, *, yields: bool) -> None:
        self._tenants[block] = tenant
        self._counts[tenant] += 1
        if self._counts[tenant] > self._max_per_tenant:
            self._surplus[tenant] = None
        if yields:
            self._yielding.setdefault(tenant, OrderedDict())[block] = None

    def _remove(self, block: BlockId) -> None:
        tenant = self._tenants.pop(block)
        self._counts[tenant] -= 1
        if self._counts[tenant] <= self._max_per_tenant:
            self._surplus.pop(tenant, None)
        if not self._counts[tenant]:
            del self._counts[tenant]
        blocks = self._yielding.get(tenant)
        if blocks is not None:
            blocks.pop(block, None)
            if not blocks:
                del self._yielding[tenant]
