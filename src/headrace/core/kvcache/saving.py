"""Saving: which blocks are copied to lower tiers ahead of need. See tiers.py.

A save has two parts. Blocks that may go next are **read** while they stay where they are, free and
cached: nobody's memory or place in the order of eviction changes. If one was evicted before its
copy was complete, the copy is worth nothing; the others are **stored**.

It knows what was saved lately, so that a tier too small for all of it is not fed the same blocks
again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.transfers import Direction

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.kvcache.cache import KVCache
    from headrace.core.kvcache.prefix import Content
    from headrace.core.kvcache.tiers import Line, TierConfig
    from headrace.core.kvcache.transfers import TransferDone
    from headrace.types import BlockId, Seconds

MIN_LOOK = 16
"""Blocks that are looked at for what to save, at least: those that go next."""

MAX_SWEEP = 4096
"""The same when idle: bounds the time of one look."""

PAUSE: Seconds = 30.0
"""After a save that read or stored nothing: no tier can be written to, and trying costs copies."""


class Part(NamedTuple):
    """What is to be transferred next."""

    direction: Direction
    blocks: tuple[BlockId, ...]
    digests: tuple[bytes, ...]


class Saving:
    """The save under way, at most one, and what the next one would be."""

    def __init__(self, kv: KVCache, line: Line, config: TierConfig) -> None:
        self.num_saved = 0
        self._kv = kv
        self._line = line
        self._config = config
        self._copied: dict[BlockId, Content] = {}  # what the blocks being read hold
        self._storing: tuple[bytes, ...] = ()
        self._is_told = False  # that _storing is to be stored
        self._not_before: Seconds = float("-inf")
        self._clean: tuple[int, tuple[int, int]] = (0, (-1, -1))  # so many next victims, and when
        self._lately: dict[bytes, None] = {}  # oldest first; as many as there are blocks

    @property
    def is_busy(self) -> bool:
        """Whether a part of a save is under way, or about to be."""
        return bool(self._copied or self._storing)

    def next(self, now: Seconds, *, is_below: Callable[[bytes], bool]) -> Part | None:
        """Return the part of a save that begins now."""
        if self._storing and not self._is_told:
            self._is_told = True
            return Part(Direction.STORE, (), self._storing)
        if self.is_busy or now < self._not_before:
            return None
        num_looked_at = self._num_to_look_at()
        victims = self._kv.survey.next_victims(num_looked_at) if num_looked_at else []
        dirty = [v for v in victims if not (v[1].digest in self._lately or is_below(v[1].digest))]
        if not dirty:
            if num_looked_at:
                self._clean = (num_looked_at, self._turnover())
            return None
        self._copied = dict(dirty[: self._config.transfer_blocks])
        digests = tuple(content.digest for content in self._copied.values())
        return Part(Direction.READ, tuple(self._copied), digests)

    def end(self, done: TransferDone, now: Seconds) -> None:
        """Note that the part under way is over."""
        if self._storing:
            self.num_saved += done.num_done
            self._storing, self._is_told = (), False
        else:
            self._storing = self._still_there(done.num_done)
        if not done.num_done:
            self._not_before = now + PAUSE
            self._lately.clear()

    def _still_there(self, num_read: int) -> tuple[bytes, ...]:
        """Return what was read and not evicted meanwhile."""
        read = list(self._copied.items())[:num_read]
        holds = self._kv.index.content
        self._copied = {}
        there = tuple(content.digest for block, content in read if holds(block) is content)
        self._lately.update(dict.fromkeys(there))
        while len(self._lately) > self._kv.survey.num_blocks:
            del self._lately[next(iter(self._lately))]
        return there

    def _num_to_look_at(self) -> int:
        """Return how many of the next victims may need saving; 0 while there is no need."""
        look = max(MIN_LOOK, 2 * self._config.transfer_blocks)
        if self._config.outlives and self._line.is_idle:
            look = MAX_SWEEP
        elif self._kv.survey.num_blank >= look:
            return 0
        num_clean, at = self._clean
        return 0 if look <= num_clean and at == self._turnover() else look

    def _turnover(self) -> tuple[int, int]:
        """Return what is different once other blocks are next to go."""
        return self._kv.index.num_added, self._kv.num_free
