"""Drafts: guesses at the next tokens of a sequence, from what its own text says elsewhere.

No second model: the end of prompt and output is looked up in both, and what followed it there is
guessed to follow again (Saxena, Prompt Lookup Decoding, 2023; Oliaro et al., SuffixDecoding,
arXiv 2411.04975). One step then computes the last token and its drafts together, and keeps them as
far as they are what is drawn anyway: the text is the same, there are fewer steps.

Whether a draft pays is a matter of chances and costs. The chance that a match of so many tokens
goes on for one more is counted in each sequence, for short and long matches apart; a new sequence
starts from what was counted in all. Guesses are counted whether or not they were sent, so a
sequence that is not worth drafts costs no time of the device to find that out. The cost is the
step-time model's: with ``tokens`` expected of a step of ``seconds``, one more draft of chance p
that adds d seconds pays if p / d > tokens / seconds. With many sequences hardly any does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, assert_never

from headrace.core.scheduler.pacing import UNLIMITED
from headrace.core.scheduler.suffixes import Match, SuffixIndex

if TYPE_CHECKING:
    from headrace.core.costs.step_model import StepLoad
    from headrace.core.kvcache.cache import KVCache
    from headrace.core.scheduler.counters import Counters
    from headrace.core.scheduler.plan import Row
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import Seconds, TokenId, Tokens

MARGIN = 2.0
"""How many times its cost a draft must be worth: chances are estimates, and the first positions
beyond one cost more than a straight line says."""

ENTER_PER_STEP = 1024
"""Tokens that enter indexes in one step, of all sequences: about half a millisecond."""

TIME_SHARE = 0.5
"""Of the time that an inter-token target leaves in a step, what drafts may take; chunks of prompts
get the rest."""

LONGEST_PAUSE = 3
"""Steps without a look after guesses that were wrong, at most."""

PRIOR_CHANCES = (0.1, 0.1, 0.35, 0.7, 0.8, 0.9, 0.95)
"""That a match goes on, by the bits of its length (2-3 tokens, 4-7, ...): SmolLM2-135M, over
ordinary texts and copies, at temperatures 0 to 1."""

PRIOR_WEIGHT = 3.0  # guesses that a prior counts as
POOL_KEEPS = 0.99  # weight of all older guesses of all sequences at each new one


class Speculation(StrEnum):
    """Where drafts come from."""

    OFF = "off"  # there are none
    LOOKUP = "lookup"  # the sequence's own text


class Drafter(Protocol):
    """Puts drafts into steps. The Scheduler's collaborator."""

    def add_drafts(self, step: Step) -> None:
        """Add drafts to the rows of ``step``, all of them decodes; nothing else is planned yet."""
        ...


class NoDrafts:
    """Adds none."""

    def add_drafts(self, step: Step) -> None:
        """Leave the step as it is."""


class StepTimes(Protocol):
    """What a Drafter asks of the step-time model."""

    def seconds(self, load: StepLoad) -> Seconds:
        """Predict how long a step takes."""
        ...


class Odds:
    """How often a match of a certain length went on. ``prior`` is believed before there is news."""

    def __init__(self, prior: Odds | None = None, *, keep: float = 1.0) -> None:
        self._prior = prior
        self._keep = keep
        self._right = [0.0] * len(PRIOR_CHANCES)
        self._total = [0.0] * len(PRIOR_CHANCES)

    def chance(self, length: Tokens) -> float:
        """Return the chance that a match of ``length`` tokens goes on for one more."""
        return self._chance(min(length.bit_length(), len(PRIOR_CHANCES) - 1))

    def note(self, length: Tokens, *, right: bool) -> None:
        """Count a guess behind a match of ``length`` tokens."""
        bits = min(length.bit_length(), len(PRIOR_CHANCES) - 1)
        self._right[bits] = self._keep * self._right[bits] + right
        self._total[bits] = self._keep * self._total[bits] + 1.0

    def _chance(self, bits: int) -> float:
        prior = PRIOR_CHANCES[bits] if self._prior is None else self._prior._chance(bits)
        return (self._right[bits] + PRIOR_WEIGHT * prior) / (self._total[bits] + PRIOR_WEIGHT)


class Guess(NamedTuple):
    """``tokens`` may follow at ``position``, for they followed a match of ``length`` tokens."""

    position: Tokens
    length: Tokens
    tokens: tuple[TokenId, ...]


class Lookup:
    """One sequence's index, odds and last guess."""

    def __init__(self, tokens: list[TokenId], pool: Odds) -> None:
        self.index = SuffixIndex(tokens)
        self.odds = Odds(pool)
        self._tokens = tokens
        self._pool = pool
        self._guess: Guess | None = None
        self._pause = 0
        self._num_wrong = 0  # guesses in a row whose first token was wrong

    def is_paused(self) -> bool:
        """Count one step of a pause; False if there is none."""
        if not self._pause:
            return False
        self._pause -= 1
        return True

    def take_news(self) -> bool:
        """Judge the last guess by the tokens drawn since; False if there are none yet."""
        guess, self._guess = self._guess, None
        if guess is None:
            return True
        drawn = self._tokens[guess.position : guess.position + len(guess.tokens)]
        if not drawn:
            self._guess = guess
            return False
        for place, (expected, token) in enumerate(zip(guess.tokens, drawn, strict=False)):
            right = expected == token
            self.odds.note(guess.length + place, right=right)
            self._pool.note(guess.length + place, right=right)
            if not right:
                break
        if drawn[0] == guess.tokens[0]:
            self._num_wrong = 0
        else:
            self._pause = min((1 << self._num_wrong) - 1, LONGEST_PAUSE)
            self._num_wrong = min(self._num_wrong + 1, LONGEST_PAUSE)
        return True

    def guess(self, match: Match, count: Tokens) -> tuple[TokenId, ...]:
        """Return ``count`` tokens that followed ``match``. They, or at least one, are judged."""
        tokens = self.index.continuation(match, max(count, 1))
        self._guess = Guess(len(self._tokens), match.length, tokens)
        return tokens[:count]


class LookupDrafter:
    """Adds drafts where they pay, at most ``max_drafts`` to a row. Never takes scarce blocks."""

    def __init__(
        self, kv: KVCache, counters: Counters, step_times: StepTimes, *, max_drafts: int
    ) -> None:
        self._kv = kv
        self._counters = counters
        self._step_times = step_times
        self._max_drafts = max_drafts
        self._pool = Odds(keep=POOL_KEEPS)

    def add_drafts(self, step: Step) -> None:
        """Look every sequence up in its own text; see the module's docstring."""
        stakes = self._stakes(step)
        if not stakes.pays(1.0):
            return
        budget = ENTER_PER_STEP
        for index, sequence in enumerate(step.sequences):
            if sequence.lookup is None:
                sequence.lookup = Lookup(sequence.tokens, self._pool)
            lookup = sequence.lookup
            if lookup.is_paused() or not lookup.take_news():
                continue
            budget -= lookup.index.enter(budget)
            match = lookup.index.longest()
            sequence.needs_last_token = match is not None and stakes.pays(
                lookup.odds.chance(match.length)
            )
            if match is None:
                continue
            row = step.rows[index]
            room = self._room(step, sequence) if row.tokens else 0
            count = stakes.take(lookup.odds, match.length, limit=room)
            if drafts := lookup.guess(match, count):
                step.rows[index] = self._drafted(step, sequence, row, drafts)
                sequence.account.charge(len(drafts) * stakes.per_draft)
        step.seconds = stakes.seconds_left

    def _stakes(self, step: Step) -> Stakes:
        """Return what the step costs and brings without drafts."""
        load = step.load()
        alone = self._step_times.seconds(load)
        more = self._step_times.seconds(load._replace(decodes=load.decodes + 1))
        return Stakes(
            tokens=load.decodes,
            seconds=alone,
            per_draft=more - alone,
            seconds_left=step.seconds,
        )

    def _room(self, step: Step, sequence: Sequence) -> Tokens:
        """Return how many drafts a sequence may have, whatever they are worth.

        Right to the last, each brings one token more. Blocks are taken for them only while there
        is one left for everyone who runs.
        """
        table, block_size = sequence.table, self._kv.block_size
        room = min(self._max_drafts, step.budget, sequence.max_tokens - len(sequence.tokens) - 1)
        spare = max(self._kv.num_free - len(step.rows), 0)
        return min(room, (len(table.blocks) + spare) * block_size - sequence.num_computed)

    def _drafted(
        self, step: Step, sequence: Sequence, row: Row, drafts: tuple[TokenId, ...]
    ) -> Row:
        """Return ``row`` with drafts, after what must be booked for them."""
        assert row.tokens is not None
        self._kv.grow(sequence.table, sequence.num_computed + len(drafts))
        step.budget -= len(drafts)
        step.num_decodes += len(drafts)
        self._counters.draft_tokens += len(drafts)
        return row._replace(
            tokens=(*row.tokens, *drafts), blocks=sequence.table.blocks, num_drafts=len(drafts)
        )


class Stakes:
    """What a step is expected to bring and to cost, drafts so far included.

    ``seconds_left`` is what may still be added to the step; drafts get a share of it.
    """

    def __init__(
        self, *, tokens: float, seconds: Seconds, per_draft: Seconds, seconds_left: Seconds
    ) -> None:
        self.per_draft = per_draft
        self.seconds_left = seconds_left
        self._tokens = tokens
        self._seconds = seconds
        self._least_left = seconds_left * (1 - TIME_SHARE) if seconds_left < UNLIMITED else 0.0

    def pays(self, chance: float) -> bool:
        """Whether one more draft is worth its cost, and there is time for it."""
        is_worth_it = chance * self._seconds > MARGIN * self.per_draft * self._tokens
        return is_worth_it and self.seconds_left - self.per_draft >= self._least_left

    def take(self, odds: Odds, length: Tokens, *, limit: int) -> int:
        """Book as many drafts behind a match of ``length`` tokens as pay; return their number."""
        count, chance = 0, odds.chance(length)
        while count < limit and self.pays(chance):
            self._tokens += chance
            self._seconds += self.per_draft
            self.seconds_left -= self.per_draft
            count += 1
            chance *= odds.chance(length + count)
        return count


def build_drafter(
    speculation: Speculation,
    kv: KVCache,
    counters: Counters,
    step_times: StepTimes,
    *,
    max_drafts: int,
) -> Drafter:
    """Return the drafter of a kind. It adds at most ``max_drafts`` to a row."""
    match speculation:
        case Speculation.OFF:
            return NoDrafts()
        case Speculation.LOOKUP:
            return LookupDrafter(kv, counters, step_times, max_drafts=max_drafts)
        case _:
            assert_never(speculation)
