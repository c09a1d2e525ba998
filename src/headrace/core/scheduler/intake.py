"""The engine's door: what can never be served is refused here, the rest becomes a Sequence."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Protocol

from headrace.core.kvcache.chain import chain_root
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.events import Reject
from headrace.core.scheduler.sequence import Beginning, Sequence
from headrace.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence as List

    from headrace.core.costs.step_model import StepObservation
    from headrace.core.scheduler.fairness import Account
    from headrace.types import Request, Seconds, SequenceId, Tokens


class EngineSpec(Protocol):
    """What the core must know of an executor. ``ExecutorSpec`` is one."""

    @property
    def model_identity(self) -> str:
        """Names weights and arithmetic."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to this, exclusive."""
        ...

    @property
    def max_model_len(self) -> Tokens:
        """The model's context, prompt and output."""
        ...

    @property
    def block_size(self) -> Tokens:
        """Tokens of one block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        ...

    @property
    def calibration(self) -> List[StepObservation]:
        """Steps that the executor has run already: what the step-time model starts with."""
        ...


@dataclass(frozen=True, slots=True)
class Intake:
    """Checks requests against what the executor can hold."""

    spec: EngineSpec

    @property
    def max_context(self) -> Tokens:
        """Longest sequence, prompt and output: the model's context, or the whole cache."""
        return min(self.spec.max_model_len, self.spec.num_blocks * self.spec.block_size)

    def refusal(self, request: Request) -> Reject | None:
        """Return why a request can never be served here, or None."""
        length = len(request.prompt)
        if not length:
            return Reject(request.id, InvalidRequest.code, "the prompt has no tokens")
        if length >= self.max_context:
            return Reject(request.id, ContextLengthExceeded.code, self._too_long(length))
        if request.max_tokens < 1:
            reason = f"max_tokens is {request.max_tokens}; it must be at least 1"
            return Reject(request.id, InvalidRequest.code, reason)
        if reason := _not_usable(request):
            return Reject(request.id, InvalidRequest.code, reason)
        if not 0 <= request.num_prior < length:
            reason = f"num_prior is {request.num_prior} of a prompt of {length} tokens"
            return Reject(request.id, InvalidRequest.code, reason)
        if not request.chain_root and not self._knows(request):
            reason = f"token ids must be 0 to {self.spec.vocab_size - 1}"
            return Reject(request.id, InvalidRequest.code, reason)
        return None

    def _knows(self, request: Request) -> bool:
        """Whether all tokens are known ones; those of a gateway were checked as they came in."""
        return 0 <= min(request.prompt) <= max(request.prompt) < self.spec.vocab_size

    def sequence(
        self, request: Request, sequence_id: SequenceId, account: Account, now: Seconds
    ) -> Sequence:
        """Return a new sequence for a request that came ``now`` and was not refused."""
        tokens = list(request.prompt)
        block_size = self.spec.block_size
        table = BlockTable(tokens, block_size, root=request.chain_root)
        table.owner = Owner(
            tenant=request.tenant,
            session=request.session,
            retention=request.retention,
            num_prompt_blocks=len(tokens) // block_size,
        )
        table.source = request.source
        if request.chain_root:
            table.chain = list(request.chain[: len(tokens) // block_size])
        else:
            identity = self.spec.model_identity
            table.root = chain_root(salt=b"", model_identity=identity, block_size=block_size)
        max_tokens = min(len(tokens) + request.max_tokens, self.max_context)
        return Sequence(
            id=sequence_id,
            request=request,
            tokens=tokens,
            table=table,
            max_tokens=max_tokens,
            beginning=Beginning(now),
            account=account,
        )

    def _too_long(self, length: Tokens) -> str:
        whose = (
            f"the model's context is {self.spec.max_model_len}"
            if self.max_context == self.spec.max_model_len
            else f"the KV cache holds {self.max_context}"
        )
        return f"the prompt has {length} tokens; {whose}, and output needs room too: shorten it"


def _not_usable(request: Request) -> str:
    """Return which of the numbers that order requests cannot, or nothing."""
    if not 0 < request.weight < float("inf"):
        return f"weight is {request.weight}; it must be finite and greater than 0"
    if request.itl is not None and not request.itl > 0:
        return f"itl is {request.itl} s; it must be greater than 0"
    if request.first_token_by is not None and not isfinite(request.first_token_by):
        return f"first_token_by is {request.first_token_by}; it must be a time"
    if request.deadline is not None and not isfinite(request.deadline):
        return f"deadline is {request.deadline}; it must be a time"
    return ""
