"""Settings of the Autoscaler. docs/config.md has them as section ``autoscaler``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerConfig:
    """What a replica may be asked to carry, and how patient decisions are."""

    target_ttft: Seconds = 1.0  # wanted time to the first token
    kv_limit: float = 0.8  # share of its KV blocks that a replica may hold for running requests
    short_window: Seconds = 5.0  # of the mean that makes the pool grow
    long_window: Seconds = 60.0  # of the other mean that lets it shrink
    scale_out_after: Seconds = 2.0  # of need
    scale_in_after: Seconds = 60.0  # of idleness, or as long as a start takes if that is more
    cooldown: Seconds = 5.0  # between two decisions by load
    sensitivity: float = 0.7  # of the limits that one replica fewer may be loaded to
    start_guess: Seconds = 10.0  # how long a start takes, until one was seen
    start_margin: Seconds = 2.0  # for a newcomer to take over work
    drain_limit: Seconds = 65.0  # a drain that takes longer is ended
    replace_pause: Seconds = 1.0  # before a replica that is gone for good is replaced
