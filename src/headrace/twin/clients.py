"""Clients: send the requests of a trace, at their times or so many at a time, and listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.machine import Source
from headrace.twin.groups import EVER, Groups
from headrace.twin.ledger import Ledger, Stream
from headrace.twin.texts import prompt_of, text_of
from headrace.twin.traces.terms import PLAIN
from headrace.types import Request, RequestId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.executor.base import ExecutorSpec
    from headrace.monitoring.goodput import Targets
    from headrace.twin.gateway import SimulatedGateway
    from headrace.twin.groups import Group, Window
    from headrace.twin.simulator import Simulator
    from headrace.twin.traces.arrivals import Arrival
    from headrace.types import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Makes requests of arrivals, tokens and block digests as a gateway does."""

    spec: ExecutorSpec
    chain_root: bytes
    timeout: Seconds

    def request(self, arrival: Arrival, name: str, now: Seconds) -> Request:
        """Return what is sent; its deadline is on the clock that ``now`` is of."""
        prompt, terms = prompt_of(arrival.prompt, self.spec.vocab_size), arrival.terms
        ttft, itl, deadline = terms.targets
        root = self._root(terms.tenant)
        return Request(
            id=RequestId(name),
            prompt=prompt,
            max_tokens=arrival.max_tokens,
            sampling=SamplingParams(seed=arrival.seed),
            chain=prompt_chain(root, prompt, self.spec.block_size),
            chain_root=root,
            deadline=now + (self.timeout if deadline is None else min(deadline, self.timeout)),
            tenant=terms.tenant,
            weight=terms.weight,
            priority=terms.priority,
            first_token_by=None if ttft is None else now + ttft,
            itl=itl,
            session=arrival.session,
        )

    def stream(self, arrival: Arrival, group: Group, now: Seconds) -> Stream:
        """Return what its client is to get."""
        room = max(1, self.spec.max_model_len - arrival.prompt_tokens)
        return Stream(
            began=now,
            prompt_tokens=arrival.prompt_tokens,
            max_tokens=min(arrival.max_tokens, room),
            text=text_of(arrival.seed, self.spec.vocab_size),
            terms=arrival.terms,
            group=group,
        )

    def _root(self, tenant: str) -> bytes:
        """Tenants share no prefixes."""
        if tenant == PLAIN.tenant:
            return self.chain_root
        return chain_root(
            salt=tenant.encode(),
            model_identity=self.spec.model_identity,
            block_size=self.spec.block_size,
        )


class Clients:
    """Sends one arrival after the other; a prompt's tokens exist from its arrival to its end."""

    def __init__(
        self,
        arrivals: Iterator[Arrival],
        writer: Writer,
        *,
        simulator: Simulator,
        concurrency: int | None,
        window: Window | None,
        targets: Targets,
        on_done: Callable[[], None],
    ) -> None:
        self.ledger = Ledger(self._ended)
        self.groups = Groups(window or EVER, targets)
        self._arrivals = arrivals
        self._writer = writer
        self._simulator = simulator
        self._concurrency = concurrency
        self._on_done = on_done
        self._choose: Callable[[], SimulatedGateway] = _nowhere
        self._is_exhausted = False

    @property
    def are_done(self) -> bool:
        """Whether every request of the trace has ended."""
        return self._is_exhausted and not self.ledger.num_open

    def start(self, choose: Callable[[], SimulatedGateway]) -> None:
        """Begin to send, each request to the gateway that ``choose`` returns."""
        self._choose = choose
        for _ in range(self._concurrency or 1):
            self._next()

    def _next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._is_exhausted = True
            if self.are_done:
                self._on_done()
            return
        at = self._simulator.now if self._concurrency else max(arrival.at, self._simulator.now)
        self._simulator.call_at(at, lambda: self._arrive(arrival), Source.PEER)

    def _arrive(self, arrival: Arrival) -> None:
        ledger, writer = self.ledger, self._writer
        gateway = self._choose()
        request = writer.request(arrival, f"q{ledger.num_requests}", gateway.driver.now)
        ledger.begin(
            request.id, writer.stream(arrival, self.groups.of(arrival.terms), self._simulator.now)
        )
        if not self._concurrency:
            self._next()
        gateway.arrive(request)

    def _ended(self) -> None:
        if self._concurrency:
            self._next()
        elif self.are_done:
            self._on_done()


def _nowhere() -> SimulatedGateway:
    raise AssertionError("a request before start")
