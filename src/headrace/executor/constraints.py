"""Constraints of sequences while they run: what each may draw next, computed beside the device.

A mask takes 3 to 200 microseconds and up to 50 ms at the limits, so it is begun in a thread before
the model runs and taken when its logits are there; the grammar itself is compiled there too. Every
state has one owner at a time: the thread from ``prepare`` to ``mask``, the executor otherwise.
With steps in flight that needs no care of the scheduler: an executor begins a step when the tokens
of the one before are drawn and accepted.

A state is made again from its text and the output so far, after a preemption as after a move to
another replica. What goes wrong with it is raised by ``mask`` and ends that one sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from headrace.errors import BadGrammar, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor as Pool
    from concurrent.futures import Future

    import numpy.typing as npt

    from headrace.core.scheduler.plan import SequenceStart
    from headrace.model.grammar import Grammar
    from headrace.types import Constraint, Seconds, TokenId

MASK_SECONDS: Seconds = 10.0
"""A mask that takes longer fails. llguidance's limits are reached in some 50 ms; the rest is for
the very first one, which reads the vocabulary, on a machine that has much else to do."""


class Mask(NamedTuple):
    """What may not be drawn next, [V]; ``is_complete``: nothing may but a stop token."""

    forbidden_V: npt.NDArray[np.bool_]
    is_complete: bool

    def apply(self, logits_V: npt.NDArray[np.float32]) -> None:
        """Forbid tokens in place; those that the tokenizer does not have, too."""
        size = self.forbidden_V.size
        np.putmask(logits_V[:size], self.forbidden_V[: logits_V.size], -np.inf)
        logits_V[size:] = -np.inf


class ConstraintState(Protocol):
    """What one sequence may say, and what of it is said."""

    def prepare(self) -> None:
        """Begin to compute the next mask, in a thread where there is one."""
        ...

    def mask(self) -> Mask | None:
        """Return what may be drawn next, None for everything. Raises BadGrammar."""
        ...

    def accept(self, token: TokenId) -> None:
        """Append a token that was drawn under the mask."""
        ...

    def count_valid(self, tokens: Sequence[TokenId]) -> int:
        """Return how many tokens of a draft may follow. Changes nothing."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens."""
        ...

    def fork(self) -> ConstraintState:
        """Return another state that goes its own way from here."""
        ...


class Unconstrained:
    """The state of a sequence that may say anything."""

    def prepare(self) -> None:
        """There is no mask."""

    def mask(self) -> None:
        """Everything may be drawn."""
        return None

    def accept(self, token: TokenId) -> None:
        """Nothing follows from it."""

    def count_valid(self, tokens: Sequence[TokenId]) -> int:
        """All of them."""
        return len(tokens)

    def rollback(self, num_tokens: int) -> None:
        """There is nothing to take back."""

    def fork(self) -> Unconstrained:
        """One is like another."""
        return self


class GrammarState:
    """A sequence that a grammar holds. It is compiled, and goes through ``output``, when needed.

    ``pool`` None: masks are computed when they are taken.
    """

    def __init__(
        self,
        compile_grammar: Callable[[], Grammar],
        output: Sequence[TokenId],
        stop_tokens: Sequence[TokenId],
        pool: Pool | None,
    ) -> None:
        self._compile = compile_grammar
        self._grammar: Grammar | None = None
        self._unread = list(output)  # drawn, and not seen by the grammar yet
        self._stop_tokens = list(stop_tokens)
        self._pool = pool
        self._pending: Future[Mask] | None = None
        self._failure: BadGrammar | None = None

    def prepare(self) -> None:
        """See ConstraintState."""
        if self._pool is not None and self._failure is None and self._pending is None:
            self._pending = self._pool.submit(self._compute)

    def mask(self) -> Mask:
        """See ConstraintState. After a failure it fails for ever."""
        if self._failure is not None:
            raise self._failure
        pending, self._pending = self._pending, None
        try:
            return self._compute() if pending is None else pending.result(MASK_SECONDS)
        except BadGrammar as error:
            self._failure = error
        except TimeoutError:
            self._failure = BadGrammar(f"a mask took more than {MASK_SECONDS:g} s")
        except MissingExtra as error:
            self._failure = BadGrammar(str(error))
        raise self._failure

    def accept(self, token: TokenId) -> None:
        """See ConstraintState."""
        self._unread.append(token)

    def count_valid(self, tokens: Sequence[TokenId]) -> int:
        """See ConstraintState. Raises BadGrammar."""
        return self._read().count_valid(tokens)

    def rollback(self, num_tokens: int) -> None:
        """See ConstraintState. Raises BadGrammar."""
        self._read().rollback(num_tokens)

    def fork(self) -> GrammarState:
        """See ConstraintState. Raises BadGrammar."""
        grammar = self._read().copy()
        return GrammarState(lambda: grammar, (), self._stop_tokens, self._pool)

    def _read(self) -> Grammar:
        """Return the grammar, having read the whole output."""
        if self._grammar is None:
            self._grammar = self._compile()
        if self._unread:
            unread, self._unread = self._unread, []
            self._grammar.consume(unread)
        return self._grammar

    def _compute(self) -> Mask:
        grammar = self._read()
        forbidden_V = grammar.forbidden()
        is_complete = bool(forbidden_V.all())
        forbidden_V[self._stop_tokens] = not grammar.is_whole()
        return Mask(forbidden_V, is_complete)


class Compiler(Protocol):
    """``model.grammar.GrammarCompiler`` is one."""

    def compile(self, constraint: Constraint) -> Grammar:
        """Compile a constraint. Raises BadGrammar, MissingExtra."""
        ...


class Constraints:
    """Begins the states of one executor's sequences. ``pool`` computes masks, None: nobody else.

    Without a ``compiler`` whoever is constrained fails.
    """

    def __init__(self, compiler: Compiler | None = None, pool: Pool | None = None) -> None:
        self._compiler = compiler
        self._pool = pool

    def begin(self, start: SequenceStart) -> ConstraintState:
        """Return the state of a sequence that starts, its output so far included."""
        constraint = start.constraint
        if constraint is None:
            return UNCONSTRAINED
        return GrammarState(
            lambda: self._compiled(constraint), start.output, start.stop_token_ids, self._pool
        )

    def _compiled(self, constraint: Constraint) -> Grammar:
        if self._compiler is None:
            raise BadGrammar("this engine cannot hold output to a grammar")
        return self._compiler.compile(constraint)


UNCONSTRAINED = Unconstrained()
