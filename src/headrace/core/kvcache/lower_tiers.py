"""LowerTiers: what is fetched from below, and when. The rules are in tiers.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from headrace.core.costs.transfer import TransferModel
from headrace.core.kvcache.coming import OF_A_LOAD
from headrace.core.kvcache.saving import Saving
from headrace.core.kvcache.transfers import Direction, Tier, TierChanged, Transfer
from headrace.types import TierFigures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.kvcache.cache import KVCache
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.kvcache.tiers import Line, RecomputeCosts, TierConfig
    from headrace.core.kvcache.transfers import TierEvent, TransferDone
    from headrace.types import BlockId, Seconds, Tokens

WINDOW = 4
"""Sequences first in line for which content is fetched ahead."""

MAX_LOADS = 2
"""Loads under way: one is moved, the next is ready. Bounds blocks that nobody can use."""

MAX_RUN = 1024
"""Blocks on which one decision is made: bounds its time."""

PATIENCE: Seconds = 1.0
PATIENCE_FACTOR = 8.0
"""A load is given up after ``PATIENCE + PATIENCE_FACTOR * what was predicted``."""


@dataclass(slots=True, kw_only=True)
class _Load:
    """``table`` holds the prefix up to block ``first``, and the blocks to be filled after it."""

    table: BlockTable
    first: int
    predicted: Seconds
    deadline: Seconds
    is_from_peer: bool = False
    is_given_up: bool = False


@dataclass(slots=True)
class _Counts:
    """The parts of TierFigures that are counted here."""

    loaded_tokens: Tokens = 0
    load_seconds: Seconds = 0.0
    peer_tokens: Tokens = 0
    peer_seconds: Seconds = 0.0
    peer_missed: Tokens = 0
    declined_tokens: Tokens = 0
    quarantined: int = 0
    errors: int = 0
    used_bytes: dict[Tier, int] = field(default_factory=dict)


class LowerTiers:
    """Implements Tiers over the blocks of ``kv``."""

    def __init__(self, kv: KVCache, costs: RecomputeCosts, line: Line, config: TierConfig) -> None:
        self._kv = kv
        self._costs = costs
        self._line = line
        self._transfer_blocks = config.within(kv.survey.num_blocks)
        self._contents: dict[Tier, set[bytes]] = {  # of those where blocks are saved
            tier: set() for tier in config.block_seconds if tier is not Tier.PEER
        }
        self._models = {tier: TransferModel(s) for tier, s in config.block_seconds.items()}
        self._loads: dict[int, _Load] = {}
        self._saving = Saving(kv, line, config)
        self._num_transfers = 0
        self._counts = _Counts()

    @property
    def is_busy(self) -> bool:
        """See Tiers."""
        return bool(self._loads) or self._saving.is_busy

    def note(self, event: TierEvent, now: Seconds) -> None:
        """See Tiers."""
        if isinstance(event, TierChanged):
            self._changed(event)
        elif event.number in self._loads:
            self._loaded(event)
        else:
            self._saving.end(event, now)

    def saving(self, table: BlockTable) -> Seconds:
        """See Tiers. Of the first run that it lacks."""
        run = self._next_run(table)
        return max(0.0, self._recompute(run) - self._seconds(self._count_tiers(table, run)))

    def fetch(self, now: Seconds) -> list[Transfer]:
        """See Tiers."""
        self._give_up(now)
        transfers: list[Transfer] = []
        if self._is_stuck() or self._line.is_empty:
            return transfers
        is_filled = any(self._contents.values())
        for table in self._line.first_in_line(WINDOW):
            if len(self._loads) >= MAX_LOADS:
                break
            if not is_filled and table.source is None:
                continue
            run = self._worth_fetching(table)
            if run and (transfer := self._load(table, run, now)):
                transfers.append(transfer)
        return transfers

    def save(self, now: Seconds) -> list[Transfer]:
        """See Tiers."""
        if not self._contents or self._is_stuck():
            return []
        part = self._saving.next(now, is_below=self._is_below)
        return [] if part is None else [self._transfer(*part)]

    def next_wakeup(self) -> Seconds | None:
        """See Tiers."""
        waited_for = [load.deadline for load in self._loads.values() if not load.is_given_up]
        return min(waited_for, default=None)

    def tables(self) -> list[BlockTable]:
        """See Tiers."""
        return [load.table for load in self._loads.values()]

    def figures(self) -> TierFigures:
        """See Tiers."""
        counts = self._counts
        return TierFigures(
            host_bytes=counts.used_bytes.get(Tier.HOST, 0),
            disk_bytes=counts.used_bytes.get(Tier.DISK, 0),
            saved_blocks_total=self._saving.num_saved,
            loaded_tokens_total=counts.loaded_tokens,
            load_seconds_total=counts.load_seconds,
            declined_tokens_total=counts.declined_tokens,
            quarantined_total=counts.quarantined,
            errors_total=counts.errors,
            peer_tokens_total=counts.peer_tokens,
            peer_seconds_total=counts.peer_seconds,
            peer_missed_total=counts.peer_missed,
            peer_block_seconds=self._seconds({Tier.PEER: 1}) if Tier.PEER in self._models else 0.0,
        )

    def _changed(self, change: TierChanged) -> None:
        contents = self._contents[change.tier]
        contents.update(change.stored)
        contents.difference_update(change.dropped)
        self._counts.used_bytes[change.tier] = change.used_bytes
        self._counts.quarantined += change.quarantined
        self._counts.errors += change.errors

    def _loaded(self, done: TransferDone) -> None:
        load = self._loads.pop(done.number)
        loaded_to, size = load.first + done.num_done, self._kv.block_size
        missed = load.table.chain[loaded_to:]
        self._kv.publish(load.table, loaded_to * size)
        self._kv.release(load.table, after=None)
        counts, seconds = self._counts, sum(read.seconds for read in done.reads)
        for read in done.reads:
            self._models[read.tier].observe(read.num_blocks, read.seconds)
        if load.is_from_peer:
            counts.peer_tokens += done.num_done * size
            counts.peer_seconds += seconds
            counts.peer_missed += len(missed) * size
            return
        for contents in self._contents.values():
            contents.difference_update(missed)
        counts.loaded_tokens += done.num_done * size
        counts.load_seconds += seconds

    def _worth_fetching(self, table: BlockTable) -> range:
        """Decide on the first run of blocks that a table lacks here and has below.

        Returns those to fetch now, none if it is not worth it. What is too dear is not looked at
        again.
        """
        run = self._next_run(table)
        if not run:
            return run
        counts = self._count_tiers(table, run)
        before = sum(load.predicted for load in self._loads.values())
        if before + self._seconds(counts) < self._recompute(run):
            return run[: self._transfer_blocks]
        table.num_decided = run.stop
        for tier in counts:
            self._models[tier].forgive()
        self._counts.declined_tokens += len(run) * self._kv.block_size
        return range(0)

    def _next_run(self, table: BlockTable) -> range:
        """Return the first blocks that a table lacks here and has below, if not decided on yet."""
        if not table.num_sharable:
            return range(0)
        table.digest(table.num_sharable - 1)  # names all before it, if nobody did
        first = self._kv.survey.num_cached(table)
        return range(first, first if first < table.num_decided else self._run_end(table, first))

    def _recompute(self, run: range) -> Seconds:
        size = self._kv.block_size
        return self._costs.recompute_seconds(len(run) * size, run.start * size)

    def _load(self, table: BlockTable, run: range, now: Seconds) -> Transfer | None:
        """Begin to load blocks that a table lacks, if there is room for the whole of it."""
        kv, size, end = self._kv, self._kv.block_size, run.stop
        load = replace(table, chain=table.chain[:end], urgency=OF_A_LOAD)
        if kv.survey.demand(load) > self._line.num_spare():
            return None
        table.num_decided = end
        kv.slices.taking.take_all(load)
        table.visit = load.visit  # who finds it is who fetched it
        if len(load.blocks) != run.start or not kv.grow(load, end * size):
            kv.release(load, after=None)  # a block before them has gone
            return None
        predicted = self._seconds(self._count_tiers(table, run))
        source = table.source if self._where(table, run.start) is Tier.PEER else None
        transfer = self._transfer(
            Direction.LOAD,
            load.blocks[run.start :],
            load.chain[run.start :],
            source="" if source is None else source.address,
        )
        self._loads[transfer.number] = _Load(
            table=load,
            first=run.start,
            predicted=predicted,
            deadline=now + PATIENCE + PATIENCE_FACTOR * predicted,
            is_from_peer=source is not None,
        )
        return transfer

    def _run_end(self, table: BlockTable, first: int) -> int:
        """Return where the run of blocks ends that are not here, not coming, and all below or all
        at one neighbour."""
        index, coming, end = self._kv.index, self._kv.coming, first
        is_at_peer: bool | None = None
        while end < min(table.num_sharable, first + MAX_RUN):
            digest, where = table.digest(end), self._where(table, end)
            if where is None or is_at_peer is (where is not Tier.PEER):
                break
            is_at_peer = where is Tier.PEER
            if digest in coming or index.find(digest) is not None:
                break
            end += 1
        return end

    def _count_tiers(self, table: BlockTable, run: range) -> dict[Tier, int]:
        """Count the blocks of a run by the quickest tier that has them."""
        counts: dict[Tier, int] = {}
        for index in run:
            tier = self._where(table, index)
            assert tier is not None  # as the run was found
            counts[tier] = counts.get(tier, 0) + 1
        return counts

    def _seconds(self, counts: dict[Tier, int]) -> Seconds:
        return sum(self._models[tier].seconds(count) for tier, count in counts.items())

    def _where(self, table: BlockTable, index: int) -> Tier | None:
        """Return the first choice of where to fetch a table's block from."""
        digest = table.digest(index)
        for tier, held in self._contents.items():
            if digest in held:
                return tier
        source = table.source
        is_lent = source is not None and index < source.num_blocks and Tier.PEER in self._models
        return Tier.PEER if is_lent else None

    def _is_below(self, digest: bytes) -> bool:
        return any(digest in contents for contents in self._contents.values())

    def _give_up(self, now: Seconds) -> None:
        for load in self._loads.values():
            if load.deadline <= now and not load.is_given_up:
                load.is_given_up = True
                self._kv.coming.give_up(load.table)
                self._counts.errors += 1

    def _is_stuck(self) -> bool:
        """Whether a load was given up and its end has still not been told."""
        return any(load.is_given_up for load in self._loads.values())

    def _transfer(
        self,
        direction: Direction,
        blocks: Sequence[BlockId],
        digests: Sequence[bytes],
        source: str = "",
    ) -> Transfer:
        self._num_transfers += 1
        return Transfer(
            number=self._num_transfers,
            direction=direction,
            blocks=tuple(blocks),
            digests=tuple(digests),
            source=source,
        )
