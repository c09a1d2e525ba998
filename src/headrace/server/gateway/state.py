"""GET /state of a gateway, and what else people ask of it: requests, explanations, the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec

from headrace.errors import InvalidRequest, RequestError, RouteNotFound
from headrace.monitoring.explain import explain
from headrace.monitoring.records import request_row
from headrace.monitoring.shapes import GatewayState
from headrace.server.gateway.http.messages import Response, error_response

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.monitoring.journal import Journal
    from headrace.monitoring.records import Records
    from headrace.monitoring.shapes import Explanation, ReplicaRow, RequestRow
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.scrape import Scrape
    from headrace.types import Seconds, Tokens

LAST_REQUESTS: Final = 50
"""In a state; a page shows no more."""

ALL_REQUESTS: Final = 500
_EXPLAIN: Final = "/explain/"


class PoolCounts(NamedTuple):
    """Requests of a pool, now."""

    waiting: int  # that no replica has
    waiting_tokens: Tokens  # of their prompts
    running: int


class PoolView(Protocol):
    """A gateway's replicas. ``Pool`` is one, and foreign/state.py has another."""

    @property
    def model(self) -> str:
        """What is served."""
        ...

    @property
    def policy(self) -> str:
        """The one that places requests now."""
        ...

    def counts(self, now: Seconds) -> PoolCounts:
        """Count requests."""
        ...

    def rows(self, now: Seconds) -> list[ReplicaRow]:
        """Return every replica."""
        ...


PoolT = TypeVar("PoolT", bound=PoolView)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions(Generic[PoolT]):
    """Answers what the admin plane asks, by path as in HTTP."""

    pool: PoolT
    figures: Figures
    records: Records
    journal: Journal
    scrape: Scrape
    clock: Clock

    def answer(self, path: str) -> Response:
        """Return the answer; an unknown path is a 404, never an exception."""
        try:
            return self._answer(path)
        except RequestError as error:
            return error_response(error)

    def _answer(self, path: str) -> Response:
        place, _, query = path.partition("?")
        match place:
            case "/state":
                return _json(self.state())
            case "/requests":
                return _json(self.requests(ALL_REQUESTS))
            case "/journal":
                return _json(self.journal.after(_number(query, "after")))
            case "/metrics":
                return self.scrape.response()
            case _ if place.startswith(_EXPLAIN):
                return _json(self.explanation(unquote(place.removeprefix(_EXPLAIN))))
            case _:
                raise RouteNotFound(f"there is nothing at {place[:200]}")

    def state(self) -> GatewayState:
        """Return the whole picture, now."""
        now = self.clock.now()
        rates = self.figures.rates(now)  # first: it settles what the others read
        pool = self.pool.counts(now)
        return GatewayState(
            model=self.pool.model,
            policy=self.pool.policy,
            replicas=self.pool.rows(now),
            waiting=pool.waiting,
            waiting_tokens=pool.waiting_tokens,
            running=pool.running,
            rates=rates,
            ttft=self.figures.ttft.percentiles(now),
            itl=self.figures.itl.percentiles(now),
            requests=self.requests(LAST_REQUESTS),
            ttft_counts=dict(self.figures.ttft.counts(now)),
            itl_counts=dict(self.figures.itl.counts(now)),
        )

    def requests(self, limit: int) -> list[RequestRow]:
        """Return the latest requests, those under way first."""
        now = self.clock.now()
        return [request_row(record, now) for record in self.records.newest(limit)]

    def explanation(self, request_id: str) -> Explanation:
        """Return where a request's time went. Raises RouteNotFound."""
        record = self.records.find(request_id)
        if record is None:
            raise RouteNotFound(
                f"no request {request_id[:200]} is among the last {len(self.records)}; "
                "take the x-request-id of an answer"
            )
        return explain(record, self.clock.now())


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value))


def _number(query: str, name: str) -> int:
    """Return a number of a query, 0 where it is not given. Raises InvalidRequest."""
    value = parse_qs(query).get(name, ["0"])[-1]
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise InvalidRequest(f"{name} is {value[:50]!r}, not a number", param=name)
    return int(value)
