"""SchedulerConfig: the settings of the Batch Scheduler, with units, ranges and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.slices import SLICE
from headrace.core.scheduler.drafts import Speculation
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.types import Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Settings of the Batch Scheduler; raises ConfigError for what is out of range."""

    max_num_seqs: int = 64
    """Sequences that run at one time, 1..8192."""
    max_num_batched_tokens: Tokens = 512
    """Tokens computed by one step, max_num_seqs..1048576: a longer step makes every running
    request wait longer for its next token, a shorter one uses the device worse."""
    max_num_waiting: int = 4096
    """Requests that wait; the next one is refused as overloaded. 1..1048576."""
    max_steps_in_flight: int = 1
    """2: plan step n+1 while the device runs step n. 1..2."""
    max_passes: int = 16
    """How often later requests may be admitted before one that does not fit. 0..1048576."""
    report_period: Seconds = 0.5
    """Between two load reports while there is work, 0.001..3600 s."""
    share_partial: bool = True
    """Copy a cached block that begins like the one needed (saves tokens, costs a copy)."""
    speculation: Speculation = Speculation.OFF
    """Guess tokens and compute them on trial, where that pays: see drafts.py."""
    max_drafts: Tokens = 16
    """Tokens guessed for a sequence in one step at most. 1..64."""
    share_waiting: bool = True
    """A newcomer waits while another sequence computes a prefix that it needs too."""
    itl: Seconds | None = None
    """Between two tokens of a request that names no target: steps are kept that short. None: no
    limit but max_num_batched_tokens. 0.001..3600 s."""
    batch_itl: Seconds | None = None
    """The same for the batch class, which others need not wait for. 0.001..3600 s."""
    order: Order = Order.DUE
    """Who is next: see order.py."""
    fair: bool = True
    """Give tenants equal shares, by weight, of resource time."""
    preemption: Preemption = Preemption.LEAST_REGRET
    """Who gives up its memory when it runs short: see preemption.py."""
    refuse_late: bool = True
    """Refuse at once what cannot be served within what it asks for."""
    eviction: EvictionConfig = field(default_factory=EvictionConfig)
    """Which cached content goes first."""
    slice_blocks: int = SLICE
    """Blocks that a sequence takes from the prefix cache, or gives back, at once: a longer one goes
    on with the events that follow. 1..16777216; the most: always all at once."""
    audit_steps: int = 256
    """Steps between two comparisons of all tables with memory's books; 0: never. 0..1048576."""
    shed_stalled: bool = True
    """End the request that is in the way when nothing can be planned; else the engine ends."""
    max_setbacks: int = 3
    """Preemptions in a row without getting further, after which a request is spared; 0: it is
    never. 0..1048576."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_num_seqs", self.max_num_seqs, 1, 8192),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20),
            ("max_num_waiting", self.max_num_waiting, 1, 1 << 20),
            ("max_steps_in_flight", self.max_steps_in_flight, 1, 2),
            ("max_passes", self.max_passes, 0, 1 << 20),
            ("max_drafts", self.max_drafts, 1, 64),
            ("slice_blocks", self.slice_blocks, 1, 1 << 24),
            ("audit_steps", self.audit_steps, 0, 1 << 20),
            ("max_setbacks", self.max_setbacks, 0, 1 << 20),
            ("report_period", self.report_period, 0.001, 3600),
            ("itl", self.itl, 0.001, 3600),
            ("batch_itl", self.batch_itl, 0.001, 3600),
        ):
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be {low:g} to {high:g}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least "
                f"max_num_seqs ({self.max_num_seqs}), one token for each running sequence"
            )
