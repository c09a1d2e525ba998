"""An executor without a model: deterministic tokens and a step-time model.

The token drawn at a position is a function of all tokens before it (and of seed and choice where
the temperature is not 0), so a sequence that is preempted, migrated or served from shared blocks
goes on with the very same text. Time is reported, never spent: whoever drives the executor waits.

With ``check_kv`` it is also the oracle for a scheduler and a cache. Every slot of every block
holds a digest of the token prefix whose key and value would lie there; a row whose context is not
exactly its own prefix raises InvariantBroken.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.scheduler.plan import StepResult
from headrace.errors import BadGrammar, InvariantBroken
from headrace.executor.constraints import Constraints
from headrace.types import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
    from headrace.executor.base import ExecutorSpec
    from headrace.executor.constraints import ConstraintState, Mask
    from headrace.types import BlockId, Seconds, SequenceId, TokenId, Tokens

SLOT_BYTES = 8
_EMPTY = -1  # a slot that was never written; digests are not negative


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step: ``base + prefill * per_prefill + decodes * per_decode + context * ...``.

    A decode is a row of one token, or a draft; every token of other rows is a prefill token. The
    context is the sum, over rows, of the tokens that the row's last token attends to. The defaults
    resemble a 135M model on two cores.
    """

    base: Seconds = 0.008
    per_prefill: Seconds = 0.0007
    per_decode: Seconds = 0.0015
    per_context: Seconds = 1e-6

    def of(self, rows: Iterable[Row]) -> Seconds:
        """Return the seconds that a step of ``rows`` takes."""
        prefill = decodes = context = 0
        for row in rows:
            num_tokens = row.num_tokens
            context += row.start + num_tokens
            if num_tokens == 1 + row.num_drafts:
                decodes += num_tokens
            else:
                prefill += num_tokens
        return (
            self.base
            + prefill * self.per_prefill
            + decodes * self.per_decode
            + context * self.per_context
        )


class SimulatedExecutor:
    """Implements Executor. ``check_kv`` costs memory and time; without it blocks hold nothing.

    If it ``repeats``, a token depends on the one before alone: texts soon go in circles.
    """

    def __init__(
        self,
        spec: ExecutorSpec,
        step_time: StepTime | None = None,
        *,
        check_kv: bool = False,
        repeats: bool = False,
        constraints: Constraints | None = None,
    ) -> None:
        self._spec = spec
        self._repeats = repeats
        self._constraints = constraints or Constraints()
        self._step_time = step_time or StepTime()
        self._texts: dict[SequenceId, _Text] = {}
        self._blocks = _CheckedBlocks(spec) if check_kv else None

    @property
    def spec(self) -> ExecutorSpec:
        """What this executor offers."""
        return self._spec

    @property
    def num_sequences(self) -> int:
        """Sequences whose state is held: 0 when all have ended."""
        return len(self._texts)

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step at once; ``seconds`` says how long it would have taken."""
        for sequence in plan.ends:
            self._texts.pop(sequence, None)
        for start in plan.starts:
            text = _Text(
                start,
                self._spec.vocab_size,
                self._constraints.begin(start),
                repeats=self._repeats,
            )
            self._texts[start.sequence] = text
        if self._blocks is not None:
            self._blocks.run(plan, self._texts)
        tokens: list[TokenId | None] = []
        more: list[tuple[int, tuple[TokenId, ...]]] = []
        logprobs: list[tuple[int, TokenLogprobs]] = []
        failures: list[tuple[int, str]] = []
        for index, row in enumerate(plan.rows):
            tokens.append(None)
            if not row.samples:
                continue
            text = self._texts[row.sequence]
            try:
                drawn = text.draw_on(_drafts(row))
            except BadGrammar as error:
                failures.append((index, str(error)))
                continue
            tokens[index] = drawn[0].token
            if len(drawn) > 1:
                more.append((index, tuple(entry.token for entry in drawn[1:])))
            if text.num_logprobs is not None:
                logprobs += [(index, entry) for entry in drawn]
        return StepResult(
            tokens=tokens,
            seconds=self._step_time.of(plan.rows),
            more=tuple(more),
            logprobs=tuple(logprobs),
            failures=tuple(failures),
        )

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, [len(blocks), block_bytes]; zeros without ``check_kv``."""
        if self._blocks is None:
            return np.zeros((len(blocks), self._spec.block_bytes), np.uint8)
        return self._blocks.read(blocks)

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks with what ``read_blocks`` returned."""
        if self._blocks is not None:
            self._blocks.write(blocks, content)

    def close(self) -> None:
        """Forget every sequence."""
        self._texts.clear()


class _Text:
    """The tokens of one sequence, as a running digest (and in full, for the checks)."""

    def __init__(
        self,
        start: SequenceStart,
        vocab_size: int,
        constraint: ConstraintState,
        *,
        repeats: bool,
    ) -> None:
        self._constraint = constraint
        self._repeats = repeats
        self.tokens = array("q", start.prompt)
        self.tokens.extend(start.output)
        self.num_logprobs = start.sampling.logprobs
        self._digest = zlib.crc32(self.tokens.tobytes())
        self._vocab_size = vocab_size
        self._must_not_stop_before = len(start.prompt) + start.min_tokens
        self._stop_tokens = frozenset(start.stop_token_ids)
        sampling = start.sampling
        greedy = sampling.temperature == 0
        self._key = 0 if greedy else zlib.crc32(b"%d/%d" % (sampling.seed, sampling.choice))

    def draw(self) -> TokenLogprobs:
        """Draw the next token and append it. Raises BadGrammar."""
        position = len(self.tokens)
        source = self.tokens[-1] if self._repeats else self._digest ^ (position << 44)
        mixed = _mix(source ^ (self._key << 20))
        mask = self._constraint.mask()
        token = mixed % self._vocab_size
        if mask is not None:
            token = _admitted(mask, mixed)
        elif position < self._must_not_stop_before:
            while token in self._stop_tokens:
                token = (token + 1) % self._vocab_size
        self._constraint.accept(token)
        self.tokens.append(token)
        self._digest = zlib.crc32(self.tokens[-1:].tobytes(), self._digest)
        return self._logprobs(token)

    def draw_on(self, drafts: tuple[TokenId, ...]) -> list[TokenLogprobs]:
        """Draw a token, and one more after each draft that was right. Raises BadGrammar.

        A failure behind a draft that was right is left for the next step to meet again.
        """
        drawn = [self.draw()]
        for draft in drafts:
            if drawn[-1].token != draft:
                break
            try:
                drawn.append(self.draw())
            except BadGrammar:
                break
        return drawn

    def _logprobs(self, token: TokenId) -> TokenLogprobs:
        """Return a plausible distribution: 1/2, 1/4, 1/8 .. over the token and its followers."""
        count = self.num_logprobs or 0
        top = [
            ((token + i) % self._vocab_size, -0.6931471805599453 * (i + 1)) for i in range(count)
        ]
        return TokenLogprobs(token, -0.6931471805599453, tuple(top))


def _drafts(row: Row) -> tuple[TokenId, ...]:
    """Return the guesses at the end of a row."""
    return row.tokens[-row.num_drafts :] if row.tokens and row.num_drafts else ()


def _admitted(mask: Mask, number: int) -> TokenId:
    """Choose one of the tokens that a mask admits. Raises BadGrammar if it admits none."""
    admitted = np.flatnonzero(~mask.forbidden_V)
    if not admitted.size:
        raise BadGrammar("no token can be drawn: all are forbidden")
    return int(admitted[number % admitted.size])


def _mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


class _CheckedBlocks:
    """Slots of all blocks, [num_blocks, block_size] digests, and the checks of a plan."""

    def __init__(self, spec: ExecutorSpec) -> None:
        if spec.block_bytes != spec.block_size * SLOT_BYTES:
            raise ValueError(
                f"checked blocks hold {SLOT_BYTES} bytes a token: block_bytes must be "
                f"{spec.block_size * SLOT_BYTES}, not {spec.block_bytes}"
            )
        self._spec = spec
        self._slots = np.full((spec.num_blocks, spec.block_size), _EMPTY, np.int64)
        self._digests: dict[SequenceId, array[int]] = {}  # of the prefix up to each position

    def run(self, plan: StepPlan, texts: dict[SequenceId, _Text]) -> None:
        """Check a plan against the contents of the blocks, and write what its rows write.

        Contexts are checked before any row writes (a row may not rely on another row of its own
        step) and again after all have written (no row may overwrite another's context).
        """
        self._apply(plan)
        for row in plan.rows:
            self._check_row(row, texts)
        self._check_contexts(plan.rows, computed_by_row=False)
        for row in plan.rows:
            self._write_row(row)
        self._check_contexts(plan.rows, computed_by_row=True)

    def read(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks as bytes."""
        return self._slots[list(blocks)].view(np.uint8)

    def write(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks."""
        self._slots[list(blocks)] = np.ascontiguousarray(content).view(np.int64)

    def _apply(self, plan: StepPlan) -> None:
        for sequence in plan.ends:
            self._digests.pop(sequence, None)
        for start in plan.starts:
            self._digests[start.sequence] = array("q")
        for source, target in plan.copies:
            self._check_block(source)
            self._check_block(target)
            self._slots[target] = self._slots[source]

    def _check_row(self, row: Row, texts: dict[SequenceId, _Text]) -> None:
        """Check shape and tokens of a row."""
        text = texts.get(row.sequence)
        if text is None:
            raise InvariantBroken(f"row of sequence {row.sequence}, which was never started")
        end = row.start + row.num_tokens
        end_of_known = end - row.num_drafts
        capacity = len(row.blocks) * self._spec.block_size
        if not row.num_tokens or end > capacity or end > self._spec.max_model_len:
            raise InvariantBroken(
                f"sequence {row.sequence}: tokens {row.start}..{end} do not fit {len(row.blocks)} "
                f"blocks of {self._spec.block_size} and a context of {self._spec.max_model_len}"
            )
        for block in row.blocks:
            self._check_block(block)
        known = len(text.tokens)
        expected = text.tokens[row.start : end_of_known].tolist()
        given = expected if row.tokens is None else list(row.tokens[: end_of_known - row.start])
        if end_of_known > known or not given or given != expected:
            raise InvariantBroken(
                f"sequence {row.sequence} at {row.start}: the row computes {given[:8]}.., "
                f"the sequence has {expected[:8]}.. ({known} tokens)"
            )
        if row.samples != (end_of_known == known) or (row.num_drafts and not row.samples):
            raise InvariantBroken(
                f"sequence {row.sequence}: row ends at {end_of_known} of {known} tokens, "
                f"with {row.num_drafts} drafts behind it, samples is {row.samples}"
            )
        self._extend_digests(row.sequence, text, end_of_known)

    def _extend_digests(self, sequence: SequenceId, text: _Text, end: Tokens) -> None:
        digests = self._digests[sequence]
        digest = digests[-1] if digests else 0
        for position in range(len(digests), end):
            digest = zlib.crc32(text.tokens[position : position + 1].tobytes(), digest)
            digests.append(digest)

    def _check_contexts(self, rows: Iterable[Row], *, computed_by_row: bool) -> None:
        for row in rows:
            computed = row.num_tokens - row.num_drafts
            end = row.start + computed if computed_by_row else row.start
            expected = np.array(self._digests[row.sequence][:end], np.int64)
            found = self._slots[list(row.blocks)].reshape(-1)[:end]
            wrong = np.flatnonzero(expected != found)
            if wrong.size:
                position = int(wrong[0])
                block = row.blocks[position // self._spec.block_size]
                what = "nothing" if found[position] == _EMPTY else "another prefix"
                when = "after" if computed_by_row else "before"
                raise InvariantBroken(
                    f"sequence {row.sequence}: block {block} holds {what} at position {position} "
                    f"({wrong.size} of {end} slots wrong, {when} the rows of this step wrote)"
                )

    def _write_row(self, row: Row) -> None:
        """Write the digests of a row's tokens: behind a wrong draft they are of another prefix."""
        positions = np.arange(row.start, row.start + row.num_tokens)
        blocks = np.array(row.blocks)[positions // self._spec.block_size]
        digests = self._digests[row.sequence][row.start : row.start + row.num_tokens]
        for draft in _drafts(row):
            digests.append(zlib.crc32(array("q", (draft,)).tobytes(), digests[-1]))
        self._slots[blocks, positions % self._spec.block_size] = digests

    def _check_block(self, block: BlockId) -> None:
        if not 0 <= block < self._spec.num_blocks:
            raise InvariantBroken(f"block {block} is not one of {self._spec.num_blocks}")
