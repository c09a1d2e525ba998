"""What our server has to reach beside its peers, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from servers import LLAMA, LLAMA_Q4_0, OPENVINO, OURS, PEERS, VLLM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PSS_LIMIT_MB = 900.0
READY_LIMIT_S = 10.0
SATURATING = "E90%"
"""Workload E at 90 % of a server's own rate in B; ``E90%:PEER`` is ours at that peer's rate."""

E_TTFT_P95_MS = (1000.0, 500.0)  # the bar, and further
E_ITL_P99_MS = 150.0
PEER_LATENCY = (1.0, 0.5)  # of the peer's


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians of the rounds: output tokens a second, and milliseconds (None: none were seen)."""

    rate: float
    ttft_p95: float | None = None
    itl_p95: float | None = None
    itl_p99: float | None = None


Measurements: TypeAlias = "Mapping[str, Mapping[str, Measured]]"
"""Server -> workload -> what was measured."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Our output tokens/s over the best of ``peers`` must be ``factor``; ``stretch`` is better."""

    workload: str
    factor: float
    peers: Sequence[str]
    stretch: float | None = None


SPINE = (
    Bar("A", 1.0, (LLAMA,)),
    Bar("B", 0.95, (OPENVINO,)),
    Bar("B", 1.1, (VLLM,)),
    Bar("C", 1.2, PEERS),
    Bar("D", 1.0, PEERS),
)
ENGINE = (
    Bar("A", 1.1, (LLAMA,), 1.3),
    Bar("A", 1.0, (LLAMA_Q4_0,)),
    Bar("B", 1.1, PEERS, 1.3),
    Bar("C", 1.6, PEERS, 2.0),
    Bar("D", 1.15, PEERS, 1.5),
)
REPETITIVE = "R"
REPETITIVE_GAIN = (1.8, 2.5)
"""Of speculation over none, on text that repeats itself: the bar, and further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bar, what was measured, and whether it is reached (None: could not be measured)."""

    bar: str
    measured: str
    reached: bool | None
    stretch: bool | None = None  # the further bar; None: there is none, or not measured


def judge_spine(
    measured: Measurements, *, pss_mb: float | None, ready_s: float | None
) -> list[Verdict]:
    """Hold rates and our footprint against the spine's bars."""
    verdicts = [_judge_rate(bar, measured) for bar in SPINE]
    verdicts.append(_judge_limit("PSS after B, MB", pss_mb, PSS_LIMIT_MB))
    verdicts.append(_judge_limit("ready after, s", ready_s, READY_LIMIT_S))
    return verdicts


def judge_engine(measured: Measurements, variants: Iterable[str]) -> list[Verdict]:
    """Hold rates and latencies against the engine's bars; ``variants`` are rows of ours."""
    verdicts = [_judge_rate(bar, measured) for bar in ENGINE]
    verdicts += [_judge_gain(variant, measured) for variant in variants]
    own = measured.get(OURS, {}).get(SATURATING)
    bar, stretch = E_TTFT_P95_MS
    ttft = own.ttft_p95 if own else None
    itl = own.itl_p99 if own else None
    verdicts.append(_judge_limit(f"{SATURATING} TTFT p95, ms", ttft, bar, stretch))
    verdicts.append(_judge_limit(f"{SATURATING} ITL p99, ms", itl, E_ITL_P99_MS))
    for peer in PEERS:
        verdicts += _judge_latencies(peer, measured)
    return verdicts


def _judge_rate(bar: Bar, measured: Measurements) -> Verdict:
    ours = measured.get(OURS, {}).get(bar.workload)
    theirs = {
        peer: measured[peer][bar.workload].rate
        for peer in bar.peers
        if bar.workload in measured.get(peer, {})
    }
    among = "best peer" if len(bar.peers) > 1 else bar.peers[0]
    text = f"{bar.workload} >= {bar.factor:g} x {among}"
    if ours is None or not theirs:
        return Verdict(bar=text, measured="-", reached=None)
    best = max(theirs, key=lambda peer: theirs[peer])
    ratio = ours.rate / theirs[best]
    return Verdict(
        bar=text,
        measured=f"{ours.rate:.1f} / {theirs[best]:.1f} ({best}) = {ratio:.2f}",
        reached=ratio >= bar.factor,
        stretch=None if bar.stretch is None else ratio >= bar.stretch,
    )


def _judge_gain(variant: str, measured: Measurements) -> Verdict:
    """Judge a variant of ours against ours on repetitive text."""
    bar, stretch = REPETITIVE_GAIN
    text = f"{REPETITIVE} {variant} >= {bar:g} x {OURS}"
    base = measured.get(OURS, {}).get(REPETITIVE)
    other = measured.get(variant, {}).get(REPETITIVE)
    if base is None or other is None:
        return Verdict(bar=text, measured="-", reached=None)
    ratio = other.rate / base.rate
    return Verdict(
        bar=text,
        measured=f"{other.rate:.1f} / {base.rate:.1f} = {ratio:.2f}",
        reached=ratio >= bar,
        stretch=ratio >= stretch,
    )


def _judge_latencies(peer: str, measured: Measurements) -> list[Verdict]:
    """Judge ours at a peer's own 90 % rate; nothing if the peer was not there."""
    theirs = measured.get(peer, {}).get(SATURATING)
    ours = measured.get(OURS, {}).get(f"{SATURATING}:{peer}")
    if theirs is None or ours is None:
        return []
    bar, stretch = PEER_LATENCY
    verdicts = []
    for name, mine, its in (
        ("TTFT", ours.ttft_p95, theirs.ttft_p95),
        ("ITL", ours.itl_p95, theirs.itl_p95),
    ):
        text = f"{SATURATING}:{peer} {name} p95 < {bar:g} x"
        if mine is None or not its:
            verdicts.append(Verdict(bar=text, measured="-", reached=None))
            continue
        ratio = mine / its
        verdicts.append(
            Verdict(
                bar=text,
                measured=f"{mine:.0f} / {its:.0f} ms = {ratio:.2f}",
                reached=ratio < bar,
                stretch=ratio <= stretch,
            )
        )
    return verdicts


def _judge_limit(
    name: str, value: float | None, limit: float, stretch: float | None = None
) -> Verdict:
    text = f"{name} <= {limit:g}"
    if value is None:
        return Verdict(bar=text, measured="-", reached=None)
    return Verdict(
        bar=text,
        measured=f"{value:.1f}",
        reached=value <= limit,
        stretch=None if stretch is None else value <= stretch,
    )
