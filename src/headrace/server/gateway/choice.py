"""One choice of a generation: its tokens as text, cut at stop strings, with log-probabilities.

Log-probabilities go out with the text they belong to: those of held-back text wait with it, those
of text that is cut are dropped.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.types import FinishReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.gateway.stops import StopMatcher
    from headrace.types import Output, TokenId, TokenLogprobs, Tokens


class Decoder(Protocol):
    """The detokenizer of one generation."""

    def push(self, tokens: Sequence[TokenId]) -> str:
        """Return the text that these tokens complete."""
        ...

    def flush(self) -> str:
        """Return what cannot be completed any more."""
        ...


class PlacedLogprobs(NamedTuple):
    """Log-probabilities of a token and where its text begins, in characters of the choice."""

    offset: int
    logprobs: TokenLogprobs


class Delta(NamedTuple):
    """What one step adds to a choice, as a client sees it."""

    text: str
    logprobs: tuple[PlacedLogprobs, ...] = ()
    finish: FinishReason | None = None


class Choice:
    """State of one choice. ``num_tokens`` is what is billed."""

    def __init__(
        self,
        *,
        index: int,
        decoder: Decoder,
        stops: StopMatcher | None,
        stop_token_ids: frozenset[TokenId],
        min_tokens: Tokens,
    ) -> None:
        self.index = index
        self.num_tokens: Tokens = 0
        self._decoder = decoder
        self._stops = stops
        self._stop_token_ids = stop_token_ids
        self._min_tokens = min_tokens  # stop strings count only in the text behind them
        self._length = 0  # characters decoded so far
        self._shown = 0  # of those, the ones that went out
        self._pending: deque[PlacedLogprobs] = deque()

    def push(self, output: Output) -> Delta:
        """Take the tokens of a step. After a Delta with ``finish`` nothing more may come."""
        tokens = output.tokens
        if output.finish is None and self._stops is None and not output.logprobs:
            self.num_tokens += len(tokens)  # the usual case, one call for all tokens
            return Delta(self._decoder.push(tokens))
        parts: list[str] = []
        for place, token in enumerate(tokens):
            self.num_tokens += 1
            if token in self._stop_token_ids and output.finish is FinishReason.STOP:
                break  # the last one: billed, not shown
            if output.logprobs:
                self._pending.append(PlacedLogprobs(self._length, output.logprobs[place]))
            if self._show(self._decoder.push((token,)), parts):
                return self._delta(parts, FinishReason.STOP, cut=True)
        if output.finish is None:
            return self._delta(parts, None)
        return self._finish(parts, output.finish)

    def _finish(self, parts: list[str], finish: FinishReason) -> Delta:
        if self._show(self._decoder.flush(), parts):
            return self._delta(parts, FinishReason.STOP, cut=True)
        if self._stops is not None:
            parts.append(self._stops.flush())
        return self._delta(parts, finish)

    def _show(self, text: str, parts: list[str]) -> bool:
        """Add to ``parts`` what may be shown; return whether a stop string is complete."""
        self._length += len(text)
        if self._stops is None or self.num_tokens <= self._min_tokens:
            parts.append(text)
            return False
        released = self._stops.push(text)
        parts.append(released.text)
        return released.stopped

    def _delta(self, parts: list[str], finish: FinishReason | None, *, cut: bool = False) -> Delta:
        text = "".join(parts)
        self._shown += len(text)
        everything = finish is not None and not cut
        logprobs = []
        while self._pending and (everything or self._pending[0].offset < self._shown):
            logprobs.append(self._pending.popleft())
        return Delta(text, tuple(logprobs), finish)
