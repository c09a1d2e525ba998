"""Rows of a step: one sequence's next token, or a chunk of what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.scheduler.plan import Row
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from headrace.core.kvcache.cache import KVCache
    from headrace.core.scheduler.counters import Counters
    from headrace.core.scheduler.drafts import Drafter
    from headrace.core.scheduler.pacing import Pace
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import Tokens


class Rows:
    """Adds rows to steps: takes blocks for them and moves sequences on."""

    def __init__(self, kv: KVCache, pace: Pace, drafter: Drafter, counters: Counters) -> None:
        self._kv = kv
        self.pace = pace
        self._drafter = drafter
        self._counters = counters

    def decode(self, step: Step, sequence: Sequence) -> None:
        """Plan the one token that a sequence lacks (or will, when its newest is known)."""
        start, table, kv = sequence.num_computed, sequence.table, self._kv
        if start == len(table.blocks) * kv.block_size and not kv.grow(table, start + 1):
            raise InvariantBroken(f"no block for sequence {sequence.id}, room was made")
        known = (sequence.tokens[-1],) if len(sequence.tokens) > start else None
        step.rows.append(Row(sequence.id, start, known, table.blocks, True))
        step.sequences.append(sequence)
        sequence.num_computed = start + 1
        sequence.num_unseen += 1
        sequence.last_step = step.id

    def add_drafts(self, step: Step) -> None:
        """Let decodes, so far the only rows of a step, guess further tokens where that pays."""
        self._drafter.add_drafts(step)

    def decode_if_there_is_time(self, step: Step, sequence: Sequence) -> None:
        """Plan the next token of a sequence that gives way to others."""
        start, table = sequence.num_computed, sequence.table
        needs_block = start == len(table.blocks) * self._kv.block_size
        if needs_block and not self._kv.num_free and not self._kv.slices.regain(1):
            return  # chunks took it meanwhile
        if self.pace.may_decode(step, start):
            self.decode(step, sequence)

    def may_begin(self, step: Step, sequence: Sequence) -> bool:
        """Whether there is time for a token of a newcomer beyond what it finds cached."""
        cached = self._kv.survey.num_cached(sequence.table) * self._kv.block_size
        return self.pace.chunk(step, cached) > 0

    def chunk(self, step: Step, sequence: Sequence, *, least: Tokens = 0) -> None:
        """Plan as many missing tokens as time, budget and free blocks allow, or ``least``.

        None while a long cached prefix is being taken in.
        """
        if not step.budget:
            return
        kv, table = self._kv, sequence.table
        if sequence.num_computed == (len(table.blocks) - table.num_taken) * kv.block_size:
            gained = kv.take_cached(table)
            if gained is None:
                return
            sequence.num_computed += gained
            if hit := kv.copy_cached(table, step.id):
                step.copies.append((hit.source, hit.target))
                sequence.num_computed += hit.num_tokens
        start = sequence.num_computed
        end = self._chunk_end(sequence, max(self.pace.chunk(step, start), least))
        if end == start or not kv.grow(table, end):
            return
        samples = end == len(sequence.tokens)
        tokens = tuple(sequence.tokens[start:end])
        step.rows.append(Row(sequence.id, start, tokens, table.blocks, samples))
        step.sequences.append(sequence)
        step.num_again += max(0, min(end, sequence.num_known) - start)
        self.pace.add_chunk(step, start, end - start)
        seconds = self.pace.model.recompute_seconds(end - start, start)
        step.spent[sequence.rank] += seconds
        sequence.account.charge(seconds)
        if not sequence.is_begun:
            sequence.is_begun = True
            step.starts.append(sequence.start())
            self._counters.started(sequence, cached=start)
        if sequence.beginning is not None:
            sequence.beginning.chunks += 1
        sequence.num_computed = end
        sequence.num_unseen += samples
        sequence.last_step = step.id

    def _chunk_end(self, sequence: Sequence, budget: Tokens) -> Tokens:
        """Return where a chunk ends: at a block's border, if it cannot be the prompt's end."""
        kv, num_blocks, start = self._kv, len(sequence.table.blocks), sequence.num_computed
        block_size = kv.block_size
        end = min(len(sequence.tokens), start + budget)
        lacking = kv.blocks_for(end) - num_blocks - kv.num_free
        if lacking > 0:
            kv.slices.regain(lacking)
            end = min(end, (num_blocks + kv.num_free) * block_size)
        border = end - end % block_size
        return border if start < border and end < len(sequence.tokens) else end
