"""Wiring: which lower tiers an engine has, by its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Tier
from headrace.errors import ConfigError
from headrace.server.kv_tiers.disk import DiskTier
from headrace.server.kv_tiers.host import HostTier
from headrace.server.kv_tiers.mover import Mover
from headrace.server.kv_tiers.segment import HEAD_BYTES, BlockFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.core.kvcache.transfers import TierEvent
    from headrace.executor.base import ExecutorSpec
    from headrace.server.settings import EngineSettings
    from headrace.types import ReplicaId, Seconds

TRANSFER_BYTES = 16 << 20
"""Of one transfer at most: some 10 ms from memory, and what its copy takes."""

BYTES_PER_SECOND = {Tier.HOST: 2e9, Tier.DISK: 5e8, Tier.PEER: 3e8}
"""First guesses, with checksums: one copy in memory, an SSD, a copy and a checksum at either end of
a socket. Measured ones replace them."""


def tier_config(settings: EngineSettings, spec: ExecutorSpec) -> TierConfig | None:
    """Return what the core is told of the lower tiers; None without any.

    Raises ConfigError for a tier that could not hold one block.
    """
    sizes: dict[Tier, int] = {}
    if settings.host_cache_bytes:
        sizes[Tier.HOST] = settings.host_cache_bytes
    if settings.disk_cache_dir:
        sizes[Tier.DISK] = settings.disk_cache_bytes
    least = spec.block_bytes + 2 * HEAD_BYTES
    for tier, size in sizes.items():
        if size < least:
            raise ConfigError(
                f"{tier.name.lower()}_cache_bytes is {size}: a block of this model takes {least}"
            )
    tiers = [*sizes, Tier.PEER] if settings.kv_transfer else [*sizes]
    if not tiers:
        return None
    return TierConfig(
        transfer_blocks=max(1, TRANSFER_BYTES // max(1, spec.block_bytes)),
        block_seconds={tier: block_seconds(tier, spec) for tier in tiers},
        outlives=Tier.DISK in sizes,
    )


def block_seconds(tier: Tier, spec: ExecutorSpec) -> Seconds:
    """Return the first guess of what a block from a tier takes."""
    return spec.block_bytes / BYTES_PER_SECOND[tier]


def block_format(spec: ExecutorSpec) -> BlockFormat:
    """Return what all blocks of an executor have in common, in files and between engines."""
    return BlockFormat(
        model_identity=spec.model_identity,
        block_size=spec.block_size,
        block_bytes=spec.block_bytes,
    )


def build_mover(
    settings: EngineSettings,
    spec: ExecutorSpec,
    *,
    replica: ReplicaId,
    clock: Clock,
    tell: Callable[[TierEvent], None],
) -> Mover | None:
    """Return the thread, not started, with the tiers that ``tier_config`` found right.

    None without host memory and disk.
    """
    if not (settings.host_cache_bytes or settings.disk_cache_dir):
        return None
    host = disk = None
    if settings.host_cache_bytes:
        host = HostTier(max_bytes=settings.host_cache_bytes, block_bytes=spec.block_bytes)
    if settings.disk_cache_dir:
        disk = DiskTier(
            Path(settings.disk_cache_dir).expanduser() / replica,
            block_format(spec),
            max_bytes=settings.disk_cache_bytes,
            clock=clock,
        )
    return Mover(host, disk, clock=clock, tell=tell)
