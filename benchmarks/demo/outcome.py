"""The demo's report: what the clients lost, what they felt, and how the pool grew and shrank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from show import clock, spark

from headrace.bench.stats import Distribution, distribution

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from play import Event, Played
    from recheck import Recheck
    from show import Look

    from headrace.testing.streams import Heard
    from headrace.types import Seconds, Tokens

EXCERPT_CHARS = 44


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text that two replicas wrote: what the first had sent, and how the second went on."""

    before: str
    after: str
    silence: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the demo found."""

    requests: int
    answered: int
    failed: int
    failures: Sequence[str]
    output_tokens: Tokens
    short_answers: int  # with another number of tokens than was asked for
    moves: int
    moved_requests: int
    recheck: Recheck
    cached_share: float
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    longest_silence_s: Seconds | None  # of a moved stream
    excerpt: Excerpt | None
    events: Sequence[Event]
    looks: Sequence[Look]

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost."""
        return not (self.failed or self.short_answers) and self.recheck.is_exact


def build_report(played: Played, recheck: Recheck) -> Report:
    """Count."""
    heard = played.heard
    moved = [one for one in heard if one.headers.get("x-request-id") in played.moved]
    gaps = [after - before for one in heard for before, after in pairwise(one.times)]
    silences = [_longest_gap(one)[0] for one in moved]
    return Report(
        requests=len(heard),
        answered=sum(one.is_whole for one in heard),
        failed=sum(one.has_failed for one in heard),
        failures=[_why(one) for one in heard if one.has_failed][:5],
        output_tokens=sum(one.usage.completion_tokens for one in heard if one.usage),
        short_answers=sum(one.is_whole and not _is_complete(one) for one in heard),
        moves=played.num_moves,
        moved_requests=len(moved),
        recheck=recheck,
        cached_share=played.cached_tokens / max(played.prompt_tokens, 1.0),
        ttft_ms=distribution([one.times[0] - one.started_at for one in heard if one.times]),
        itl_ms=distribution(gaps),
        longest_silence_s=max(silences, default=None),
        excerpt=_excerpt(moved),
        events=played.events,
        looks=played.looks,
    )


def report_lines(report: Report) -> Iterator[str]:
    """Write it for people."""
    check = report.recheck
    yield ""
    yield f"requests    {report.requests}, failed {report.failed}"
    yield from (f"            {why}" for why in report.failures)
    yield (
        f"tokens      {report.output_tokens:,}: lost {check.lost}, repeated {check.repeated}, "
        f"foreign {check.foreign}"
    )
    yield (
        f"            {check.identical} of {check.asked} texts asked again are identical"
        + (f", {check.near_ties} part at a near-tie" if check.near_ties else "")
        + (f", {check.failed} could not be had again" if check.failed else "")
    )
    silence = report.longest_silence_s
    yield (
        f"moved       {report.moved_requests} of them went on at another replica"
        + (f"; longest silence in one {silence:.2f} s" if silence is not None else "")
    )
    yield f"cache       {report.cached_share:.0%} of prompt tokens were found in a prefix cache"
    yield from _latency("TTFT", report.ttft_ms)
    yield from _latency("ITL", report.itl_ms)
    yield ""
    yield from _timeline(report)
    if report.excerpt is not None:
        yield ""
        yield f"one of them, {report.excerpt.silence:.2f} s of silence where the bar stands:"
        yield f"  ...{report.excerpt.before} | {report.excerpt.after}..."


def _latency(name: str, found: Distribution | None) -> Iterator[str]:
    if found is not None:
        parts = f"p50 {found.p50:,.0f} ms, p95 {found.p95:,.0f} ms, p99 {found.p99:,.0f} ms"
        yield f"{name:<11} {parts}"


def _timeline(report: Report) -> Iterator[str]:
    looks = report.looks
    if not looks:
        return
    top = max(look.rate for look in looks)
    ceiling = max(look.ceiling for look in looks)
    yield f"load        {spark([look.rate for look in looks], top=top)} up to {top:.1f}/s"
    yield f"replicas    {spark([look.ready for look in looks], top=ceiling)} up to {ceiling}"
    yield f"            0:00{clock(looks[-1].at):>56}"
    yield from (f"{clock(event.at):>10}  {event.text}" for event in report.events)


def _is_complete(heard: Heard) -> bool:
    if heard.usage is None:
        return False
    wanted = heard.asked.max_tokens
    return heard.finishes == ["stop"] or heard.usage.completion_tokens == wanted


def _why(heard: Heard) -> str:
    errors = "; ".join(f"{error.code}: {error.message}" for error in heard.errors)
    return heard.broken or errors or f"status {heard.status}"


def _longest_gap(heard: Heard) -> tuple[Seconds, int]:
    """Return the longest silence in a stream, and the number of the piece that ended it."""
    pairs = enumerate(pairwise(heard.times), 1)
    return max(((after - before, index) for index, (before, after) in pairs), default=(0.0, 0))


def _excerpt(moved: Sequence[Heard]) -> Excerpt | None:
    """Return the place of a move in a text to which both replicas gave a good part."""
    found = []
    for heard in moved:
        silence, index = _longest_gap(heard)
        before = " ".join("".join(heard.pieces[:index]).split())
        after = " ".join("".join(heard.pieces[index:]).split())
        if min(len(before), len(after)) >= EXCERPT_CHARS:
            found.append(Excerpt(before[-EXCERPT_CHARS:], after[:EXCERPT_CHARS], silence))
    return min(found, key=lambda excerpt: excerpt.silence, default=None)
