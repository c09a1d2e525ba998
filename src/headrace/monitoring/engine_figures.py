"""What engines report, in the gateway's registry, and figures of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.monitoring import table

if TYPE_CHECKING:
    from headrace.monitoring.metrics import Registry
    from headrace.types import ReplicaId, ReportLoad, Seconds

_WHILE_THERE = (
    table.ENGINE_RUNNING,
    table.ENGINE_WAITING,
    table.ENGINE_WAITING_TOKENS,
    table.KV_BLOCKS,
    table.KV_TIER_BYTES,
    table.PREFIX_INDEX_STATE,
    table.PREFIX_INDEX_ACCURACY,
    table.PROCESS_RESIDENT,
    table.PROCESS_OPEN_FDS,
)


class EngineFigures:
    """Writes down reports. Counters of an engine that was restarted start again at 0.

    What still arrives of a replica that is gone (its link is being closed) is dropped.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._present: set[ReplicaId] = set()
        self._resident: dict[ReplicaId, int] = {}

    def ready(self, replica: ReplicaId) -> None:
        """A replica is connected."""
        self._present.add(replica)
        self._registry.put(table.REPLICA_READY, replica, value=1)

    def lost(self, replica: ReplicaId) -> None:
        """It is not any more; it may come back."""
        self._registry.add(table.REPLICA_LOSSES, replica)
        self.gone(replica)

    def gone(self, replica: ReplicaId) -> None:
        """What was true only while it was there is dropped; counters stay."""
        self._registry.put(table.REPLICA_READY, replica, value=0)
        self._present.discard(replica)
        self._resident.pop(replica, None)
        for metric in _WHILE_THERE:
            self._registry.drop(metric, replica)

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        """A load report came."""
        if replica not in self._present:
            return
        put = self._registry.put
        held = report.kv_blocks_total - report.kv_blocks_free
        used = max(0, held - report.kv_blocks_quarantined)
        empty = report.kv_blocks_free - report.kv_blocks_cached
        put(table.KV_BLOCKS, replica, "used", value=used)
        put(table.KV_BLOCKS, replica, "cached", value=report.kv_blocks_cached)
        put(table.KV_BLOCKS, replica, "empty", value=empty)
        put(table.KV_TIER_BYTES, replica, "host", value=report.tiers.host_bytes)
        put(table.KV_TIER_BYTES, replica, "disk", value=report.tiers.disk_bytes)
        put(table.KV_BLOCKS, replica, "quarantined", value=report.kv_blocks_quarantined)
        for metric, value in (
            (table.ENGINE_SHED, report.shed_total),
            (table.ENGINE_RUNNING, report.running),
            (table.ENGINE_WAITING, report.waiting),
            (table.ENGINE_WAITING_TOKENS, report.waiting_tokens),
            (table.ENGINE_STEPS, report.step),
            (table.ENGINE_STEP_SECONDS, report.step_seconds_total),
            (table.ENGINE_PROMPT_TOKENS, report.prompt_tokens_total),
            (table.ENGINE_COMPUTED_TOKENS, report.computed_tokens_total),
            (table.ENGINE_RECOMPUTED_TOKENS, report.recomputed_tokens_total),
            (table.ENGINE_CACHED_TOKENS, report.cached_tokens_total),
            (table.ENGINE_OUTPUT_TOKENS, report.output_tokens_total),
            (table.ENGINE_DISCARDED_TOKENS, report.discarded_tokens_total),
            (table.ENGINE_DRAFT_TOKENS, report.draft_tokens_total),
            (table.ENGINE_ACCEPTED_DRAFTS, report.accepted_drafts_total),
            (table.ENGINE_PREEMPTIONS, report.preemptions_total),
            (table.KV_PINNED, report.kv_blocks_pinned),
            (table.KV_EVICTED, report.kv_evicted_total),
            (table.KV_REGRETTED, report.kv_regretted_total),
            (table.KV_TIER_SAVED, report.tiers.saved_blocks_total),
            (table.KV_TIER_LOADED, report.tiers.loaded_tokens_total),
            (table.KV_TIER_SECONDS, report.tiers.load_seconds_total),
            (table.KV_TIER_DECLINED, report.tiers.declined_tokens_total),
            (table.KV_TIER_QUARANTINED, report.tiers.quarantined_total),
            (table.KV_TIER_ERRORS, report.tiers.errors_total),
            (table.KV_PEER_TOKENS, report.tiers.peer_tokens_total),
            (table.KV_PEER_SECONDS, report.tiers.peer_seconds_total),
            (table.KV_PEER_MISSED, report.tiers.peer_missed_total),
        ):
            put(metric, replica, value=value)

    def process(
        self, replica: ReplicaId, *, resident_bytes: int, open_fds: int, cpu_seconds: Seconds
    ) -> None:
        """A heartbeat came, with figures of the engine's process."""
        if replica not in self._present:
            return
        self._resident[replica] = resident_bytes
        record_process(
            self._registry,
            replica,
            resident_bytes=resident_bytes,
            open_fds=open_fds,
            cpu_seconds=cpu_seconds,
        )

    def kv_changed(self, replica: ReplicaId) -> None:
        """A change of its prefix cache was reported."""
        self._registry.add(table.KV_CHANGES, replica)

    def resident_bytes(self, replica: ReplicaId) -> int:
        """Return what the last heartbeat said, 0 without one."""
        return self._resident.get(replica, 0)


def record_process(
    registry: Registry, process: str, *, resident_bytes: int, open_fds: int, cpu_seconds: Seconds
) -> None:
    """Write down figures of a process."""
    registry.put(table.PROCESS_RESIDENT, process, value=resident_bytes)
    registry.put(table.PROCESS_OPEN_FDS, process, value=open_fds)
    registry.put(table.PROCESS_CPU, process, value=cpu_seconds)
