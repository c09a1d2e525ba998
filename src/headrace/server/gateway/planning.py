"""A client's request to core Requests: defaults, limits that depend on the model, salts, seeds."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.server.gateway.keeping import NOTHING_ASKED, Keeping
from headrace.server.gateway.urgency import Urgency
from headrace.server.keys import DEFAULT_TENANT, Principal
from headrace.types import PriorityClass, Request, RequestId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.server.gateway.api.requests import GenerationFields
    from headrace.types import Constraint, Seconds, TokenId, Tokens

T = TypeVar("T")

_SEED_MASK = (1 << 64) - 1
_MAX_ROOTS = 1024  # of tenants and salts in use, 32 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for beyond GenerationFields, with the two APIs' differences resolved."""

    fields: GenerationFields
    max_tokens: Tokens | None
    logprobs: int | None
    prompt_field: str  # for errors
    urgency: Urgency = field(default_factory=Urgency)
    constraint: Constraint | None = None
    keeping: Keeping = NOTHING_ASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is drawn or counted for one request, and for whom it is (see Principal)."""

    id: str
    seed: int
    deadline: Seconds
    tenant: str = DEFAULT_TENANT
    weight: float = 1.0
    priority: PriorityClass = PriorityClass.STANDARD
    first_token_by: Seconds | None = None
    itl: Seconds | None = None


def draft_for(
    principal: Principal,
    urgency: Urgency,
    *,
    id: str,
    seed: int,
    arrived_at: Seconds,
    timeout: Seconds,
) -> Draft:
    """Return the draft of a request that may take ``timeout`` seconds, or its own deadline."""
    ttft, itl, deadline = urgency.targets
    first = min((each for each in (ttft, deadline) if each is not None), default=None)
    return Draft(
        id=id,
        seed=seed,
        deadline=arrived_at + (timeout if deadline is None else min(timeout, deadline)),
        tenant=principal.tenant,
        weight=principal.weight,
        priority=urgency.priority,
        first_token_by=None if first is None else arrived_at + first,
        itl=itl,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The model's limits, as this gateway serves it."""

    context_length: Tokens
    vocab_size: int
    end_ids: tuple[TokenId, ...]
    default_max_tokens: Tokens | None  # None: what fits


class Chains:
    """Names prompts' blocks, apart for each tenant and each client's ``cache_salt``.

    Nobody can tell by the time of an answer what another tenant has asked: its blocks have other
    names, here and in the router's index.
    """

    def __init__(self, *, secret: bytes, model_identity: str, block_size: Tokens) -> None:
        self._model_identity = model_identity
        self._block_size = block_size
        self._secret = secret
        self._root = lru_cache(maxsize=_MAX_ROOTS)(self._compute_root)

    def name(self, group: tuple[Request, ...], cache_salt: str | None) -> tuple[Request, ...]:
        """Return requests of one prompt with its block digests. A client's salt adds to ours."""
        root = self._root(group[0].tenant, cache_salt)
        chain = prompt_chain(root, group[0].prompt, self._block_size)
        return tuple(replace(request, chain=chain, chain_root=root) for request in group)

    def _compute_root(self, tenant: str, cache_salt: str | None) -> bytes:
        salt = hmac.digest(self._secret, tenant.encode(), "sha256")
        if cache_salt is not None:
            salt = hmac.digest(salt, cache_salt.encode(), "sha256")
        return chain_root(
            salt=salt, model_identity=self._model_identity, block_size=self._block_size
        )


def build_requests(
    asked: Asked, prompts: Sequence[tuple[TokenId, ...]], draft: Draft, model: ModelFacts
) -> tuple[tuple[Request, ...], ...]:
    """Return for each prompt its n requests. Raises InvalidRequest, with ``param``."""
    fields = asked.fields
    num_choices = fields.n or 1
    sampling = _sampling(asked, draft, model)
    stop_token_ids = _stop_token_ids(asked, model)
    groups = []
    for place, prompt in enumerate(prompts):
        max_tokens = _max_tokens(asked, prompt, model)
        first = Request(
            id=RequestId(f"{draft.id}#{place * num_choices}"),
            prompt=prompt,
            max_tokens=max_tokens,
            min_tokens=_min_tokens(asked, max_tokens),
            stop_token_ids=stop_token_ids,
            sampling=sampling,
            deadline=draft.deadline,
            tenant=draft.tenant,
            weight=draft.weight,
            priority=draft.priority,
            session=asked.keeping.session,
            retention=asked.keeping.retention,
            first_token_by=draft.first_token_by,
            itl=draft.itl,
            constraint=asked.constraint,
        )
        others = [
            replace(
                first,
                id=RequestId(f"{draft.id}#{place * num_choices + choice}"),
                sampling=replace(sampling, choice=choice),
            )
            for choice in range(1, num_choices)
        ]
        groups.append((first, *others))
    return tuple(groups)


def _sampling(asked: Asked, draft: Draft, model: ModelFacts) -> SamplingParams:
    fields = asked.fields
    bias = tuple((fields.logit_bias or {}).items())
    _check_tokens((token for token, _ in bias), model, "logit_bias")
    default = SamplingParams()
    return SamplingParams(
        temperature=_or(fields.temperature, default.temperature),
        top_p=_or(fields.top_p, default.top_p),
        top_k=max(0, _or(fields.top_k, default.top_k)),
        min_p=_or(fields.min_p, default.min_p),
        presence_penalty=_or(fields.presence_penalty, default.presence_penalty),
        frequency_penalty=_or(fields.frequency_penalty, default.frequency_penalty),
        repetition_penalty=_or(fields.repetition_penalty, default.repetition_penalty),
        logit_bias=bias,
        seed=_or(fields.seed, draft.seed) & _SEED_MASK,
        logprobs=asked.logprobs,
    )


def _max_tokens(asked: Asked, prompt: Sequence[TokenId], model: ModelFacts) -> Tokens:
    room = model.context_length - len(prompt)
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param=asked.prompt_field)
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {len(prompt)} tokens and the model's context {model.context_length}, "
            "of which the answer needs at least one; shorten the prompt",
            param=asked.prompt_field,
        )
    if asked.max_tokens is None:
        return min(room, model.default_max_tokens or room)
    if asked.max_tokens > room:
        raise ContextLengthExceeded(
            f"the prompt has {len(prompt)} tokens, {asked.max_tokens} more are asked for, and the "
            f"model's context is {model.context_length}; shorten the prompt or ask for less",
            param="max_tokens",
        )
    return asked.max_tokens


def _min_tokens(asked: Asked, max_tokens: Tokens) -> Tokens:
    """Return how long the end is put off. A fulfilled constraint ends the output all the same."""
    min_tokens = asked.fields.min_tokens or 0
    if asked.constraint is not None and asked.fields.ignore_eos:
        return max_tokens
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {min_tokens} and max_tokens {max_tokens}", param="min_tokens"
        )
    return min_tokens


def _stop_token_ids(asked: Asked, model: ModelFacts) -> tuple[TokenId, ...]:
    """Return what ends the output. Under a constraint it must be possible to end."""
    own = asked.fields.stop_token_ids or []
    _check_tokens(own, model, "stop_token_ids")
    ends = () if asked.fields.ignore_eos and asked.constraint is None else model.end_ids
    return tuple(dict.fromkeys((*ends, *own)))


def _check_tokens(tokens: Iterable[TokenId], model: ModelFacts, param: str) -> None:
    worst = max(tokens, default=0)
    if worst >= model.vocab_size:
        raise InvalidRequest(
            f"{param}: token {worst} is not below {model.vocab_size}, the number of tokens",
            param=param,
        )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
