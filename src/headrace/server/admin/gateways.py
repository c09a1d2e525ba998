"""What all gateways say, as if there were one: states, requests, explanations, figures."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from headrace.errors import NotReady, RequestError, RouteNotFound
from headrace.monitoring.metrics import CONTENT_TYPE
from headrace.monitoring.shapes import GatewayState, Rates, ReplicaRow, RequestRow
from headrace.monitoring.windows import percentiles_of
from headrace.server.admin.summing import Totals
from headrace.server.gateway.http.messages import Response, error_response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.messages import Answer

LAST_REQUESTS = 50
ALL_REQUESTS = 500
_LIVE = ("waiting", "running")
_READY = "ready"

_decode_state = msgspec.json.Decoder(GatewayState).decode
_decode_rows = msgspec.json.Decoder(list[RequestRow]).decode


class GatewayAnswers(Protocol):
    """One gateway, as the admin plane sees it."""

    @property
    def num_connections(self) -> int:
        """How often it was connected."""
        ...

    async def ask(self, path: str) -> Answer:
        """Ask it; raise NotReady or Overloaded without an answer."""
        ...


class Connected(Protocol):
    """Who knows the gateways. ``ControlHub`` is one."""

    @property
    def gateways(self) -> Mapping[str, GatewayAnswers]:
        """Those that are connected now, by name."""
        ...


class AllGateways:
    """Asks every gateway that is there. Implements Collector (control_link.py)."""

    def __init__(self, connected: Connected) -> None:
        self._connected = connected
        self._totals = Totals()
        self._lives: dict[str, str] = {}

    async def state(self) -> GatewayState:
        """Return one picture. Raises NotReady if nobody answers."""
        answers = await self._ask("/state")
        return merged_state([_decode_state(answer.body) for answer in answers.values()])

    async def requests(self) -> list[RequestRow]:
        """Return the latest requests, those under way first."""
        answers = await self._ask("/requests")
        rows = [row for answer in answers.values() for row in _decode_rows(answer.body)]
        return newest(rows, ALL_REQUESTS)

    async def find(self, path: str) -> Answer:
        """Return the answer of the gateway that has one, else what one of them says."""
        answers = list((await self._ask(path)).values())
        return next((each for each in answers if each.status == 200), answers[0])

    async def metrics(self) -> str:
        """Return the sums of all gateways, those that are gone included."""
        try:
            answers = await self._ask("/metrics")
        except RequestError:
            if not self._totals:
                raise
            answers = {}
        for name, answer in answers.items():
            self._totals.take(name, answer.body.decode())
        return self._totals.exposition()

    # Collector

    async def answer(self, path: str) -> Response:
        """See Collector."""
        try:
            if path != "/metrics":
                raise RouteNotFound(f"there is nothing at {path[:200]} of all gateways")
            return Response(200, (await self.metrics()).encode(), CONTENT_TYPE.encode())
        except RequestError as error:
            return error_response(error)

    def hello(self, name: str, life: str) -> None:
        """See Collector."""
        if self._lives.get(name, life) != life:
            self._totals.retire(name)
        self._lives[name] = life

    def farewell(self, name: str, figures: str) -> None:
        """See Collector."""
        self._totals.take(name, figures)

    def lost(self, name: str) -> None:
        """See Collector."""
        self._totals.forget_gauges(name)

    def gone(self, name: str) -> None:
        """See Collector."""
        self._lives.pop(name, None)
        self._totals.retire(name)

    async def _ask(self, path: str) -> dict[str, Answer]:
        """Ask all at once; leave out who does not answer. Raises what they raise if all do."""
        links = dict(self._connected.gateways)
        if not links:
            raise NotReady("the gateway is not connected; it is started again when it died")
        asked = [link.ask(path) for link in links.values()]
        answers: dict[str, Answer] = {}
        refusal: RequestError | None = None
        for name, got in zip(
            links, await asyncio.gather(*asked, return_exceptions=True), strict=True
        ):
            if isinstance(got, RequestError):
                refusal = got
            elif isinstance(got, BaseException):
                raise got
            else:
                answers[name] = got
        if not answers and refusal is not None:
            raise refusal
        return answers


def newest(rows: Sequence[RequestRow], limit: int) -> list[RequestRow]:
    """Return the latest rows, those under way first."""
    return sorted(rows, key=lambda row: (row.state not in _LIVE, -row.unix))[:limit]


def merged_state(states: Sequence[GatewayState]) -> GatewayState:
    """Return several gateways' states (at least one) as one."""
    first = states[0]
    return GatewayState(
        model=first.model,
        policy=", ".join(dict.fromkeys(state.policy for state in states)),
        replicas=_merged_rows([row for state in states for row in state.replicas]),
        waiting=sum(state.waiting for state in states),
        waiting_tokens=sum(state.waiting_tokens for state in states),
        running=sum(state.running for state in states),
        rates=_merged_rates([state.rates for state in states]),
        ttft=percentiles_of(_summed([state.ttft_counts for state in states])),
        itl=percentiles_of(_summed([state.itl_counts for state in states])),
        requests=newest([row for state in states for row in state.requests], LAST_REQUESTS),
    )


def _summed(counts: Sequence[Mapping[int, int]]) -> Counter[int]:
    return sum((Counter(each) for each in counts), Counter())


def _merged_rates(rates: Sequence[Rates]) -> Rates:
    prompt_tokens = sum(each.prompt_tokens for each in rates)
    cached = sum(each.cached_share * each.prompt_tokens for each in rates)
    return Rates(
        window=max(each.window for each in rates),
        requests=sum(each.requests for each in rates),
        failures=sum(each.failures for each in rates),
        prompt_tokens=prompt_tokens,
        output_tokens=sum(each.output_tokens for each in rates),
        cached_share=cached / prompt_tokens if prompt_tokens else 0.0,
        with_targets=sum(each.with_targets for each in rates),
        goodput=sum(each.goodput for each in rates),
    )


def _merged_rows(rows: Sequence[ReplicaRow]) -> list[ReplicaRow]:
    """Of each replica the first opinion that is not good, and everybody's requests."""
    parts: dict[str, list[ReplicaRow]] = {}
    for row in rows:
        parts.setdefault(row.replica, []).append(row)
    return [
        replace(
            next((row for row in same if row.state != _READY), same[0]),
            outstanding=sum(row.outstanding for row in same),
            prefill_tokens=sum(row.prefill_tokens for row in same),
        )
        for same in parts.values()
    ]
