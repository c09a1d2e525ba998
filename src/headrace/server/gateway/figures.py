"""What the gateway counts. Per token this is one observation, so it is kept short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.monitoring import table

if TYPE_CHECKING:
    from headrace.monitoring.metrics import Registry
    from headrace.types import Seconds, Tokens, Usage


class Figures:
    """Counts one gateway's requests in a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answered(self, route: str, status: int, seconds: Seconds) -> None:
        """An HTTP request was answered; status 499: the client left before."""
        self._registry.add(table.HTTP_REQUESTS, route, str(status))
        self._registry.observe(table.REQUEST_SECONDS, value=seconds)

    def connections(self, number: int) -> None:
        """So many client connections are open."""
        self._registry.put(table.CONNECTIONS, value=number)

    def accepted(self, num_choices: int, prompt_tokens: Tokens) -> None:
        """Generations began."""
        self._registry.add(table.GENERATIONS_RUNNING, amount=num_choices)
        self._registry.observe(table.PROMPT_LENGTH, value=prompt_tokens, times=num_choices)

    def ended(self, finish: str, num_tokens: Tokens) -> None:
        """One generation ended, however."""
        self._registry.add(table.GENERATIONS_RUNNING, amount=-1)
        self._registry.add(table.GENERATIONS, finish)
        self._registry.observe(table.OUTPUT_LENGTH, value=num_tokens)

    def billed(self, usage: Usage) -> None:
        """A client request ended."""
        self._registry.add(table.PROMPT_TOKENS, amount=usage.prompt_tokens)
        self._registry.add(table.CACHED_TOKENS, amount=usage.cached_tokens)
        self._registry.add(table.OUTPUT_TOKENS, amount=usage.completion_tokens)

    def first_token(self, seconds: Seconds) -> None:
        """Since the request was read."""
        self._registry.observe(table.TIME_TO_FIRST_TOKEN, value=seconds)

    def next_tokens(self, seconds: Seconds, num_tokens: Tokens) -> None:
        """Since the tokens before; a step may bring several."""
        self._registry.observe(table.INTER_TOKEN, value=seconds / num_tokens, times=num_tokens)

    def overshoot(self, num_tokens: Tokens) -> None:
        """Tokens that came behind a stop string."""
        self._registry.add(table.OVERSHOOT_TOKENS, amount=num_tokens)
