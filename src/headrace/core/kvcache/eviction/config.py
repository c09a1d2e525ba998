"""EvictionConfig: what decides which cached content goes first."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigError

LRU = "lru"
FORESIGHT = "foresight"
ORDERS = (LRU, FORESIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionConfig:
    """Settings of eviction; raises ConfigError for what is out of range."""

    order: str = FORESIGHT
    """``lru``: least recently used first. ``foresight``: least likely to come back first, where
    that has shown to be better, and nothing that the waiting queue will hit before the rest."""
    lookahead_blocks: int = 65536
    """Blocks of waiting requests that ``foresight`` keeps in mind, 0..16777216."""
    pinned_share: float = 0.25
    """Share of all blocks that one tenant's pins may take, 0..1; 0: pins have no effect."""
    tenant_share: float = 1.0
    """Share of all blocks that one tenant's cached content may take while others want room,
    0.01..1; 1: no quota."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"eviction is {self.order!r}; it must be one of {', '.join(ORDERS)}")
        for name, value, low, high in (
            ("lookahead_blocks", self.lookahead_blocks, 0, 1 << 24),
            ("pinned_share", self.pinned_share, 0, 1),
            ("tenant_share", self.tenant_share, 0.01, 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be {low} to {high}")
