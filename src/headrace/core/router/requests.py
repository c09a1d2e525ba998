"""What the Router keeps of a request: what was delivered, where it is, where it was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from headrace.types import RequestId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import BlockKey, ReplicaId, Request, Seconds, TokenId, Tokens


def keys_of(digests: Sequence[bytes]) -> tuple[BlockKey, ...]:
    """Return ``types.block_key`` of each digest, on little-endian machines.

    All have one length, a multiple of 8.
    """
    if not digests:
        return ()
    words = memoryview(b"".join(digests)).cast("Q")
    return tuple(cast("list[BlockKey]", words[:: len(digests[0]) // 8].tolist()))


@dataclass(slots=True)
class Tracked:
    """An accepted request that has not ended; ``attempt`` is None while it waits."""

    request: Request  # as its client sent it
    group: RequestId  # the first id of those it waits with
    prompt_tokens: Tokens
    keys: tuple[BlockKey, ...] = ()
    attempt: Attempt | None = None
    tokens: list[TokenId] = field(default_factory=list)  # delivered
    answered: bool = False  # an Output was delivered, if only an empty one
    num_attempts: int = 0
    num_losses: int = 0  # replicas that were lost or hung under it
    num_retries: int = 0
    hedged: bool = False  # moved once because it waited in vain
    tried: tuple[ReplicaId, ...] = ()  # replicas on which it failed or was lost
    claims: dict[ReplicaId, Tokens] | None = None  # of its prompt, while it is being placed
    left: ReplicaId | None = None  # alive, with its blocks; until it is answered elsewhere

    @property
    def id(self) -> RequestId:
        """The client's."""
        return self.request.id

    @property
    def num_tokens_left(self) -> Tokens:
        """What may still come."""
        return self.request.max_tokens - len(self.tokens)

    @property
    def first_token_by(self) -> Seconds | None:
        """When its first token is wanted, as long as no replica has accepted it.

        One that had a place and lost it is late without its fault: nobody is to refuse it for that.
        """
        return self.request.first_token_by if self.num_attempts == self.num_retries else None

    def next_request(self) -> Request:
        """Return what to send for the next attempt: it goes on after the last delivered token."""
        if not self.num_attempts:
            return self.request
        request, tokens = self.request, self.tokens
        return replace(
            request,
            id=RequestId(f"{request.id}~{self.num_attempts + 1}"),
            prompt=request.prompt + tuple(tokens),
            max_tokens=self.num_tokens_left,
            num_prior=request.num_prior + len(tokens),
            first_token_by=self.first_token_by,
        )


@dataclass(slots=True)
class Attempt:
    """One stay of a request at one replica, and what it counts for in that replica's load."""

    id: RequestId
    tracked: Tracked
    replica: ReplicaId
    uncached: Tokens  # prompt tokens to compute there, as was believed at dispatch
    expected: tuple[BlockKey, ...]  # in the prefix index until the first token
    claimed: Tokens | None  # of the prompt, said to be there; None: nothing to compare with
    tokens: list[TokenId]  # the request's own list: one look-up less for each output
    renames: RequestId | None  # the client's id, where it is another one than the attempt's
    sent_at: Seconds
    ahead: Tokens  # prompt tokens that waited there before it, at dispatch
    promised: Seconds | None  # time to its first token, if the policy predicted it then
    answered: bool = False
