"""What clients of the simulated model must have heard, and how far what they heard is from it.

The oracle is independent of servers: it tokenises the prompt, draws the tokens that the simulated
executor draws when nothing disturbs it, and detokenises them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from headrace.executor.base import ExecutorSpec
from headrace.model.text import load_text_model
from headrace.testing.engines import undisturbed
from headrace.types import Request, RequestId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from headrace.testing.streams import Asked, Heard
    from headrace.types import Tokens

MAX_EXAMPLES = 10
"""Faults that are kept in words; all are counted."""

_RETRYABLE = (429, 503)
_HTTP_OK = 200


class Texts(Protocol):
    """Knows what every request must get."""

    def pieces(self, asked: Asked) -> Sequence[str]:
        """Return the text of each token of the answer; that of a token may be empty."""
        ...


class Oracle:
    """The texts of ``headrace serve simulated:PATH``."""

    def __init__(self, path: Path) -> None:
        self._text = load_text_model(path)
        self._spec = ExecutorSpec(
            model_identity="oracle",
            vocab_size=self._text.tokenizer.vocab_size,
            max_model_len=self._text.context_length,
            block_size=1,
            num_blocks=self._text.context_length,
            block_bytes=0,
        )

    def pieces(self, asked: Asked) -> Sequence[str]:
        """See Texts."""
        decoder = self._text.tokenizer.detokenizer(continues=not asked.chat)
        request = Request(
            id=RequestId("oracle"),
            prompt=self._prompt(asked),
            max_tokens=asked.max_tokens,
            sampling=SamplingParams(temperature=asked.temperature, seed=asked.seed),
        )
        pieces = [decoder.push((token,)) for token in undisturbed(request, self._spec).tokens]
        pieces[-1] += decoder.flush()
        return pieces

    def _prompt(self, asked: Asked) -> tuple[int, ...]:
        if asked.chat:
            return tuple(self._text.encode_chat([{"role": "user", "content": asked.prompt}]))
        return tuple(self._text.encode_prompt(asked.prompt))


@dataclass(frozen=True, slots=True)
class Difference:
    """Tokens of an answer that are missing, came twice, or are not its own."""

    lost: Tokens = 0
    duplicated: Tokens = 0
    foreign: Tokens = 0


def difference(pieces: Sequence[str], heard: str, *, whole: bool) -> Difference:
    """Say how ``heard`` differs from the text of ``pieces``; None of it where they agree.

    An answer that is not ``whole`` may end early. The first place where the texts part is judged
    by what follows it: text from further on means lost tokens, text from before it repeated
    ones, anything else is foreign to the end.
    """
    expected = "".join(pieces)
    if heard == expected or (not whole and expected.startswith(heard)):
        return Difference()
    starts = [0, *accumulate(map(len, pieces))]
    parting = next(
        (i for i, (a, b) in enumerate(zip(expected, heard, strict=False)) if a != b),
        min(len(expected), len(heard)),
    )
    here = next(i for i in range(len(starts) - 1, -1, -1) if starts[i] <= parting)
    for place in (*range(here + 1, len(starts)), *range(here - 1, -1, -1)):
        rest = heard[starts[here] :]
        if _follows(expected[starts[place] :], rest, whole=whole):
            return Difference(lost=max(0, place - here), duplicated=max(0, here - place))
    return Difference(foreign=max(1, len(pieces) - here))


def _follows(expected: str, heard: str, *, whole: bool) -> bool:
    return heard == expected if whole else bool(heard) and expected.startswith(heard)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a check of many answers found. All but the first four must be 0."""

    requests: int = 0
    answered: int = 0  # whole answers
    left: int = 0  # the client went away, as it was told
    failed: int = 0
    lost_tokens: int = 0
    duplicated_tokens: int = 0
    foreign_tokens: int = 0
    wrong_texts: int = 0
    wrong_usages: int = 0
    bad_ends: int = 0  # not exactly one end
    bad_errors: int = 0  # errors of another shape than OpenAI's, or without Retry-After
    examples: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether no answer, whole or not, held anything but its own tokens, each once."""
        return not (self.wrong_texts or self.wrong_usages or self.bad_ends or self.bad_errors)

    def say(self, what: str, heard: Heard) -> None:
        """Keep an example."""
        if len(self.examples) < MAX_EXAMPLES:
            asked = heard.asked
            prompt = asked.prompt[:24]
            shown = f"{asked.max_tokens} tokens after {prompt!r}, seed {asked.seed}"
            self.examples.append(f"{what} ({shown}; status {heard.status})")


def check(texts: Texts, all_heard: Iterable[Heard]) -> Verdict:
    """Hold answers against what they must be and against the API's promises."""
    verdict = Verdict()
    for heard in all_heard:
        verdict.requests += 1
        verdict.answered += heard.is_whole
        verdict.left += heard.left
        if heard.has_failed:
            verdict.failed += 1
            why = heard.broken or "; ".join(f"{e.code}: {e.message}" for e in heard.errors)
            verdict.say(f"failed: {why}", heard)
        _check_text(texts, heard, verdict)
        _check_end(heard, verdict)
        _check_errors(heard, verdict)
    return verdict


def _check_text(texts: Texts, heard: Heard, verdict: Verdict) -> None:
    if heard.status != _HTTP_OK:
        return
    pieces = texts.pieces(heard.asked)
    found = difference(pieces, heard.text, whole=heard.is_whole)
    verdict.lost_tokens += found.lost
    verdict.duplicated_tokens += found.duplicated
    verdict.foreign_tokens += found.foreign
    if found != Difference():
        verdict.wrong_texts += 1
        verdict.say(f"wrong text: {found}", heard)
    if heard.is_whole and (
        heard.usage is None or heard.usage.completion_tokens != heard.asked.max_tokens
    ):
        verdict.wrong_usages += 1
        verdict.say(f"wrong usage: {heard.usage}", heard)


def _check_end(heard: Heard, verdict: Verdict) -> None:
    """A stream ends by one finish or one error, then ``[DONE]``, then nothing (I1)."""
    if heard.left or heard.status != _HTTP_OK:
        return
    num_ends = len(heard.finishes) + len(heard.errors)
    is_proper = num_ends == 1 and heard.num_done == heard.asked.stream and not heard.num_late
    if not is_proper:
        verdict.bad_ends += 1
        verdict.say(
            f"{len(heard.finishes)} finishes, {len(heard.errors)} errors, {heard.num_done} "
            f"[DONE], {heard.num_late} events after it; {heard.broken}",
            heard,
        )


def _check_errors(heard: Heard, verdict: Verdict) -> None:
    """An error has OpenAI's shape, and a Retry-After where it is worth trying again (I11)."""
    if heard.left or heard.status == 0:
        return
    shaped = all(error.message and error.type and error.code for error in heard.errors)
    told = heard.status == _HTTP_OK or len(heard.errors) == 1
    promised = heard.status not in _RETRYABLE or heard.headers.get("retry-after", "").isdecimal()
    if not (shaped and told and promised):
        verdict.bad_errors += 1
        verdict.say(f"error {heard.errors}, Retry-After {heard.headers.get('retry-after')}", heard)
