"""Ask again, undisturbed, what was asked in the storm: the same seed must give the same text.

With weights and KV cache in f32 the texts are compared to the last character. Where one differs,
the margin between the two likeliest tokens at that place says whether it was a near-tie, which
arithmetic in another batch may decide the other way, or a fault.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict
from urllib.request import Request, urlopen

from headrace.testing.stream_checks import Difference, difference
from headrace.testing.streams import Crowd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.testing.streams import Asked, Heard
    from headrace.types import Tokens

AT_ONCE = 4
NEAR_TIE = 1e-3
"""Of log-probability: f32 sums in another order move logits by less."""

ANSWER_S = 60.0


class _Top(TypedDict):
    logprob: float


class _Place(TypedDict):
    top_logprobs: list[_Top]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """What asking again showed. ``failed``: answers that could not be had again."""

    asked: int = 0
    identical: int = 0
    near_ties: int = 0  # texts that part where two tokens were equally likely
    lost: Tokens = 0
    repeated: Tokens = 0
    foreign: Tokens = 0
    failed: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether every text was as it should be."""
        return self.asked == self.identical + self.near_ties


async def ask_again(port: int, all_heard: Sequence[Heard]) -> Recheck:
    """Ask each of these again on the calm server, a few at a time, and compare."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(heard: Heard) -> Recheck:
        async with places:
            again = await Crowd(port).ask(heard.asked)
            return await _compare(port, heard, again)

    return total(await asyncio.gather(*(one(heard) for heard in all_heard)))


def total(parts: Sequence[Recheck]) -> Recheck:
    """Add up."""
    return Recheck(
        asked=sum(part.asked for part in parts),
        identical=sum(part.identical for part in parts),
        near_ties=sum(part.near_ties for part in parts),
        lost=sum(part.lost for part in parts),
        repeated=sum(part.repeated for part in parts),
        foreign=sum(part.foreign for part in parts),
        failed=sum(part.failed for part in parts),
    )


async def _compare(port: int, heard: Heard, again: Heard) -> Recheck:
    if not again.is_whole:
        return Recheck(asked=1, failed=1)
    found = difference(again.pieces, heard.text, whole=heard.is_whole)
    if found == Difference() and heard.usage == again.usage:
        return Recheck(asked=1, identical=1)
    place = _parting(heard.pieces, again.pieces)
    if found.foreign and await asyncio.to_thread(_margin, port, heard.asked, place) < NEAR_TIE:
        return Recheck(asked=1, near_ties=1)
    return Recheck(asked=1, lost=found.lost, repeated=found.duplicated, foreign=found.foreign)


def _parting(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the place of the first piece that differs."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _margin(port: int, asked: Asked, place: int) -> float:
    """Return how much likelier the best token at a place is than the second; 1 if drawn freely.

    Pieces and tokens are taken to be the same; characters of several tokens shift this a little.
    """
    if asked.temperature:
        return 1.0
    asked = replace(asked, max_tokens=place + 1)
    body = {
        "messages": [{"role": "user", "content": asked.prompt}],
        "max_tokens": asked.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
    }
    request = Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=ANSWER_S) as response:
        places: list[_Place] = json.load(response)["choices"][0]["logprobs"]["content"]
    best, second = (top["logprob"] for top in places[-1]["top_logprobs"][:2])
    return best - second
