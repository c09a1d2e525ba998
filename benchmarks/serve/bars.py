"""What our server has to reach beside its peers, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from servers import LLAMA, LLAMA_DEFAULT, LLAMA_Q4_0, OPENVINO, OURS, VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PEERS = (LLAMA, LLAMA_DEFAULT, LLAMA_Q4_0, OPENVINO, VLLM)
PSS_LIMIT_MB = 900.0
READY_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Bar:
    """Our output tokens/s over the best of ``peers`` must be ``factor`` or more."""

    workload: str
    factor: float
    peers: Sequence[str]


SPINE = (
    Bar("A", 1.0, (LLAMA,)),
    Bar("B", 0.95, (OPENVINO,)),
    Bar("B", 1.1, (VLLM,)),
    Bar("C", 1.2, PEERS),
    Bar("D", 1.0, PEERS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bar, what was measured, and whether it is reached (None: could not be measured)."""

    bar: str
    measured: str
    reached: bool | None


def judge(
    rates: Mapping[str, Mapping[str, float]], *, pss_mb: float | None, ready_s: float | None
) -> list[Verdict]:
    """Hold median rates (server -> workload -> tokens/s) and our footprint against the bars."""
    verdicts = [_judge_rate(bar, rates) for bar in SPINE]
    verdicts.append(_judge_limit("PSS after B, MB", pss_mb, PSS_LIMIT_MB))
    verdicts.append(_judge_limit("ready after, s", ready_s, READY_LIMIT_S))
    return verdicts


def _judge_rate(bar: Bar, rates: Mapping[str, Mapping[str, float]]) -> Verdict:
    ours = rates.get(OURS, {}).get(bar.workload)
    theirs = {
        peer: rates[peer][bar.workload] for peer in bar.peers if bar.workload in rates.get(peer, {})
    }
    among = "best peer" if len(bar.peers) > 1 else bar.peers[0]
    text = f"{bar.workload} >= {bar.factor:g} x {among}"
    if ours is None or not theirs:
        return Verdict(bar=text, measured="-", reached=None)
    best = max(theirs, key=lambda peer: theirs[peer])
    ratio = ours / theirs[best]
    return Verdict(
        bar=text,
        measured=f"{ours:.1f} / {theirs[best]:.1f} ({best}) = {ratio:.2f}",
        reached=ratio >= bar.factor,
    )


def _judge_limit(name: str, value: float | None, limit: float) -> Verdict:
    text = f"{name} <= {limit:g}"
    if value is None:
        return Verdict(bar=text, measured="-", reached=None)
    return Verdict(bar=text, measured=f"{value:.1f}", reached=value <= limit)
