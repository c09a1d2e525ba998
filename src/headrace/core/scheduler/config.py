"""SchedulerConfig: the settings of the Batch Scheduler, with units, ranges and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_num_seqs", self.max_num_seqs, 1, 8192),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1, 1 << 20),
            ("max_num_waiting", self.max_num_waiting, 1, 1 << 20),
            ("max_steps_in_flight", self.max_steps_in_flight, 1, 2),
            ("max_passes", self.max_passes, 0, 1 << 20),
            ("report_period", self.report_period, 0.001, 3600),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be {low} to {high}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least "
                f"max_num_seqs ({self.max_num_seqs}), one token for each running sequence"
            )
