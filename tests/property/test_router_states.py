"""Property: whatever happens in whatever order, every accepted request ends exactly once, and its
client gets the tokens that an undisturbed run would give: none lost, repeated or foreign.

Replicas here are honest engines of one model (the next token is a function of all tokens before
it), except that they die, hang, stutter, fail attempts and repeat what was fenced off.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.balancer.registry import POLICIES, build_policy
from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import (
    AttemptFailed,
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    Drain,
    Drained,
    DrainReplica,
    Fail,
    GoOn,
    KvListed,
    KvReported,
    LoadReported,
    Outputs,
    PeersHeard,
    ReplicaBeat,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaLost,
    ReplicaReady,
    ReplicaState,
    RequestArrived,
    ResumeReplica,
    RouterEffect,
    RouterEvent,
)
from headrace.core.router.gossip import Load
from headrace.core.router.lanes import LaneKey
from headrace.core.router.machine import Router, RouterLimits
from headrace.errors import PoisonRequest
from headrace.machine import Tick
from headrace.types import (
    BlockKey,
    FinishReason,
    Output,
    PriorityClass,
    ReplicaId,
    ReportLoad,
    Request,
    RequestId,
    Role,
)

REPLICAS = [ReplicaId(f"r{index}") for index in range(3)]
BLOCK = 2
FACTS = ReplicaFacts(
    block_size=BLOCK,
    num_blocks=64,
    max_num_seqs=4,
    max_num_batched_tokens=8,
    peer_block_seconds=1e-6,
)


def next_token(tokens: tuple[int, ...]) -> int:
    """The model: deterministic, and sensitive to every token before."""
    return sha256(repr(tokens).encode()).digest()[0]


def undisturbed(request: Request) -> tuple[int, ...]:
    tokens = request.prompt
    for _ in range(request.max_tokens):
        tokens = (*tokens, next_token(tokens))
    return tokens[len(request.prompt) :]


@dataclass
class Client:
    """What one client asked, and what it has got so far."""

    request: Request
    arrived_at: float
    waits_since: float
    place: tuple[ReplicaId, RequestId] | None = None  # the attempt that is not given up
    tokens: tuple[int, ...] = ()
    moves: int = 0
    hedges: int = 0
    deaths: int = 0  # of replicas that it was at


@dataclass
class Engine:
    """A replica: the attempts it works on, and those it will not let go of."""

    attempts: dict[RequestId, Request] = field(default_factory=dict)
    tokens: dict[RequestId, tuple[int, ...]] = field(default_factory=dict)
    told: bool = False  # to drain


class RouterStates(RuleBasedStateMachine):
    """Holds beside the router who waits, who is where, and who has ended how."""

    @initialize(
        waiting=st.integers(1, 6),
        outstanding=st.integers(1, 4),
        wait=st.floats(0.5, 20.0),
        migrations=st.integers(0, 3),
        policy=st.sampled_from(sorted(POLICIES)),
        share=st.sampled_from((0.1, 1.0)),
        pause=st.sampled_from((0.0, 0.025, 2.0)),
        deaths=st.integers(0, 3),
    )
    def start(
        self,
        waiting: int,
        outstanding: int,
        wait: float,
        migrations: int,
        policy: str,
        share: float,
        pause: float,
        deaths: int,
    ) -> None:
        self.limits = RouterLimits(
            max_waiting=waiting,
            max_outstanding=outstanding,
            max_wait=wait,
            deadline_grace=1.0,
            max_migrations=migrations,
            max_failures=2,
            retry_share=share,
            retry_pause=pause,
            poison_deaths=deaths,
            hedge_after=1.5,
        )
        self.router = Router(self.limits, build_policy(policy))
        self.now = 0.0
        self.num_requests = 0
        self.num_admitted = 0
        self.num_retries = 0
        self.num_hedges = 0
        self.condemned: set[tuple[str, tuple[int, ...]]] = set()  # tenant and prompt
        self.steps: dict[ReplicaId, int] = {}
        self.clients: dict[RequestId, Client] = {}  # alive
        self.engines: dict[ReplicaId, Engine] = {}  # connected
        self.states: dict[ReplicaId, ReplicaState] = {}
        self.seen_attempts: set[RequestId] = set()
        self.drained = 0
        for replica in REPLICAS[:2]:
            self.become_ready(replica)

    # What happens.

    def feed(self, event: RouterEvent) -> None:
        effects = self.router.handle(event, self.now)
        for effect in effects:
            self.observe(event, effect)
        self.router.check_integrity()
        for replica, state in self.states.items():
            assert self.router.state(replica) is state, "a change was not said"
        wakeup = self.router.next_wakeup()
        assert wakeup is None or wakeup > self.now, "M3"

    def observe(self, event: RouterEvent, effect: RouterEffect) -> None:
        match effect:
            case Dispatch():
                self.observe_dispatch(effect)
            case CancelAt(replica, attempt):
                self.engines[replica].attempts.pop(attempt, None)
            case GoOn():
                self.observe_move(event, effect)
            case Deliver(outputs):
                for output in outputs:
                    self.observe_output(output)
            case Fail():
                self.observe_failure(event, effect)
            case ReplicaJudged(replica, state):
                self.states[replica] = state
            case ReplicaEmptied(replica):
                assert not any(c.place and c.place[0] == replica for c in self.clients.values())
            case Drained():
                self.drained += 1
                assert self.drained == 1
            case _:
                pass

    def observe_move(self, event: RouterEvent, move: GoOn) -> None:
        client = self.clients[move.request_id]
        assert client.place is not None
        assert client.place[0] == move.replica
        assert move.num_tokens == len(client.tokens)
        failed = isinstance(event, AttemptFailed) and event.request_id == client.place[1]
        self.num_retries += failed
        if move.hedged:
            assert not client.tokens, "it had begun"
            self.num_hedges += 1
            client.hedges += 1
        client.place, client.waits_since = None, self.now
        client.moves += not move.planned

    def observe_dispatch(self, effect: Dispatch) -> None:
        client, request = self.clients[effect.client_id], effect.request
        assert client.place is None, "sent twice"
        assert request.id not in self.seen_attempts, "an attempt's id was used again"
        assert self.states[effect.replica] in (ReplicaState.READY, ReplicaState.PROBING)
        assert not self.engines[effect.replica].told, "sent to a draining replica"
        assert request.prompt == client.request.prompt + client.tokens, "not where it was"
        assert request.max_tokens == client.request.max_tokens - len(client.tokens)
        assert request.num_prior == len(client.tokens)
        if request.source is not None:
            assert request.source.replica in self.engines.keys() - {effect.replica}
            assert request.source.num_blocks * BLOCK < len(request.prompt)
        self.seen_attempts.add(request.id)
        client.place = (effect.replica, request.id)
        engine = self.engines[effect.replica]
        engine.attempts[request.id] = request
        engine.tokens[request.id] = request.prompt

    def observe_failure(self, event: RouterEvent, failure: Fail) -> None:
        client = self.clients.pop(failure.request_id)  # KeyError: it ended twice
        if failure.code != PoisonRequest.code:
            return
        known = (client.request.tenant, client.request.prompt)
        if isinstance(event, RequestArrived):
            assert known in self.condemned, "refused without ever having done any harm"
        else:
            assert 0 < self.limits.poison_deaths <= client.deaths
            self.condemned.add(known)

    def observe_output(self, output: Output) -> None:
        client = self.clients[output.request_id]
        client.tokens += output.tokens
        right = undisturbed(client.request)
        assert client.tokens == right[: len(client.tokens)], "lost, repeated or foreign"
        if output.finish is not None:
            if output.finish is FinishReason.LENGTH:
                assert client.tokens == right
            del self.clients[output.request_id]

    @rule(
        size=st.integers(1, 3),
        life=st.none() | st.floats(0.0, 30.0),
        length=st.integers(1, 7),
        priority=st.sampled_from(PriorityClass),
        tenant=st.sampled_from(("red", "blue")),
        first=st.none() | st.floats(0.0, 3.0),
    )
    def arrive(
        self,
        size: int,
        life: float | None,
        length: int,
        priority: PriorityClass,
        tenant: str,
        first: float | None,
    ) -> None:
        deadline = None if life is None else self.now + life
        prompt = tuple(range(length))
        requests = tuple(
            Request(
                id=RequestId(f"{self.num_requests}#{choice}"),
                prompt=prompt,
                max_tokens=2 + self.num_requests % 5,
                deadline=deadline,
                chain=prompt_chain(b"root", prompt, BLOCK),
                priority=priority,
                tenant=tenant,
                first_token_by=None if first is None else self.now + first,
            )
            for choice in range(size)
        )
        self.num_requests += 1
        for request in requests:
            self.clients[request.id] = Client(request, self.now, self.now)
        self.feed(RequestArrived(requests))

    @rule(replica=st.sampled_from(REPLICAS), role=st.sampled_from(Role), lends=st.booleans())
    def become_ready(self, replica: ReplicaId, role: Role = Role.MIXED, lends: bool = True) -> None:
        self.die(replica)
        self.engines[replica] = Engine()
        facts = replace(FACTS, role=role, lends_at=f"{replica}.kv" if lends else "")
        self.feed(ReplicaReady(replica, facts))

    @rule(replica=st.sampled_from(REPLICAS))
    def be_lost(self, replica: ReplicaId) -> None:
        self.die(replica)
        self.feed(ReplicaLost(replica, "test"))
        self.engines.pop(replica, None)
        assert not any(c.place and c.place[0] == replica for c in self.clients.values())

    def die(self, replica: ReplicaId) -> None:
        """Whoever is there may have done it, unless the replica was told to end."""
        if replica in self.engines and not self.engines[replica].told:
            for client in self.clients.values():
                client.deaths += client.place is not None and client.place[0] == replica

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), waiting=st.integers(0, 6), progress=st.booleans(), slow=st.booleans())
    def report(self, data: st.DataObject, waiting: int, progress: bool, slow: bool) -> None:
        """An engine says how many it has not begun, and how long its steps took."""
        replica = data.draw(st.sampled_from(sorted(self.engines)))
        self.tell_load(replica, waiting=waiting, progress=progress, slow=slow)

    @precondition(lambda self: any(c.place for c in self.clients.values()))
    @rule(data=st.data(), seconds=st.floats(0.2, 2.0))
    def wait_in_vain(self, data: st.DataObject, seconds: float) -> None:
        """An engine does not begin what it has."""
        waiting = {c.place[0] for c in self.clients.values() if c.place and not c.tokens}
        replica = data.draw(st.sampled_from(sorted(waiting or self.engines)))
        self.tell_load(replica, waiting=0, progress=True, slow=False)
        self.now += seconds
        self.tell_load(replica, waiting=6, progress=False, slow=False)

    def tell_load(self, replica: ReplicaId, *, waiting: int, progress: bool, slow: bool) -> None:
        step = self.steps[replica] = self.steps.get(replica, 0) + progress
        load = ReportLoad(
            step=step,
            running=1,
            waiting=waiting,
            waiting_tokens=0,
            kv_blocks_total=64,
            kv_blocks_free=1,
            kv_blocks_cached=0,
            prompt_tokens_total=0,
            cached_tokens_total=0,
            output_tokens_total=step,
            discarded_tokens_total=0,
            preemptions_total=0,
            step_seconds_total=step * (5.0 if slow else 0.01),
            computed_tokens_total=8 * step,
        )
        self.feed(LoadReported(replica, load))

    @rule(replica=st.sampled_from(REPLICAS), changes=st.none() | st.integers(0, 6))
    def beat(self, replica: ReplicaId, changes: int | None) -> None:
        self.feed(ReplicaBeat(replica, changes))

    @precondition(lambda self: self.engines)
    @rule(
        data=st.data(),
        stop=st.booleans(),
        times=st.integers(1, 3),
        cached=st.none() | st.integers(0, 7),
    )
    def step(self, data: st.DataObject, stop: bool, times: int, cached: int | None) -> None:
        """An engine draws some tokens of everything it works on, wanted or not."""
        replica = data.draw(st.sampled_from(sorted(self.engines)))
        for time in range(times):
            self.step_once(replica, stop=stop and time == times - 1, cached=cached)

    def step_once(self, replica: ReplicaId, *, stop: bool, cached: int | None) -> None:
        engine = self.engines[replica]
        outputs = []
        for name, request in list(engine.attempts.items()):
            token = next_token(engine.tokens[name])
            engine.tokens[name] += (token,)
            last = len(engine.tokens[name]) == len(request.prompt) + request.max_tokens
            finish = FinishReason.STOP if stop else FinishReason.LENGTH if last else None
            outputs.append(Output(name, (token,), finish, cached))
            if finish is not None:
                del engine.attempts[name]
        self.feed(Outputs(replica, tuple(outputs)))

    @precondition(lambda self: self.seen_attempts)
    @rule(data=st.data(), replica=st.sampled_from(REPLICAS))
    def speak_of_the_past(self, data: st.DataObject, replica: ReplicaId) -> None:
        """Tokens of an attempt that this replica does not have, or has no more."""
        name = data.draw(st.sampled_from(sorted(self.seen_attempts)))
        current = {c.place for c in self.clients.values()}
        if (replica, name) not in current:
            self.feed(Outputs(replica, (Output(name, (999,), None, 0),)))
            failure = AttemptFailed(
                replica=replica, request_id=name, code="overloaded", reason="", retryable=True
            )
            self.feed(failure)

    @precondition(lambda self: any(c.place for c in self.clients.values()))
    @rule(
        data=st.data(),
        retryable=st.booleans(),
        to_blame=st.booleans(),
        busy_for=st.none() | st.floats(0.0, 5.0),
    )
    def fail_an_attempt(
        self, data: st.DataObject, retryable: bool, to_blame: bool, busy_for: float | None
    ) -> None:
        placed = sorted(c.place for c in self.clients.values() if c.place)
        replica, name = data.draw(st.sampled_from(placed))
        self.engines[replica].attempts.pop(name, None)
        self.feed(
            AttemptFailed(
                replica=replica,
                request_id=name,
                code="overloaded",
                reason="test",
                retryable=retryable,
                to_blame=to_blame,
                busy_for=busy_for,
            )
        )

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        names = tuple(data.draw(st.lists(st.sampled_from(sorted(self.clients)), min_size=1)))
        for name in set(names):
            del self.clients[name]
        self.feed(ClientGone(names))

    @rule(
        loads=st.dictionaries(
            st.sampled_from(REPLICAS), st.builds(Load, *[st.integers(0, 3)] * 4), max_size=2
        ),
        service=st.dictionaries(
            st.builds(LaneKey, st.integers(0, 2), st.sampled_from(("red", "green"))),
            st.floats(0, 500),
            max_size=2,
        ),
    )
    def hear_of_others(self, loads: dict[ReplicaId, Load], service: dict[LaneKey, float]) -> None:
        """Other gateways have something there, and served somebody."""
        self.feed(PeersHeard(loads, service))

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), limit=st.floats(0.0, 20.0))
    def drain_a_replica(self, data: st.DataObject, limit: float) -> None:
        replica = data.draw(st.sampled_from(sorted(self.engines)))
        self.engines[replica].told = True
        self.feed(DrainReplica(replica, limit))

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def resume_a_replica(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.engines)))
        self.engines[replica].told = False
        self.feed(ResumeReplica(replica))

    @rule(
        replica=st.sampled_from(REPLICAS),
        number=st.integers(1, 6),
        keys=st.lists(st.integers(0, 5).map(BlockKey), max_size=4),
        listed=st.booleans(),
        epoch=st.sampled_from([0, 0, 0, 1]),
    )
    def tell_of_blocks(
        self, replica: ReplicaId, number: int, keys: list[BlockKey], listed: bool, epoch: int
    ) -> None:
        if listed:
            self.feed(KvListed(replica, number, tuple(keys), epoch))
        else:
            self.feed(KvReported(replica, number, tuple(keys[:2]), tuple(keys[2:]), epoch))

    @rule(seconds=st.floats(0.0, 15.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    @rule()
    def wait_as_asked(self) -> None:
        wakeup = self.router.next_wakeup()
        if wakeup is not None:
            self.now = wakeup
            self.feed(Tick())

    @precondition(lambda self: not self.router.draining)
    @rule(limit=st.floats(5.0, 20.0), really=st.integers(0, 9))
    def drain(self, limit: float, really: int) -> None:
        if not really:
            self.feed(Drain(limit))

    # What must hold between events.

    @invariant()
    def the_router_knows_the_same_requests(self) -> None:
        if self.num_requests:
            assert self.router.num_alive == len(self.clients)

    @invariant()
    def nobody_waits_too_long_or_without_need(self) -> None:
        if not self.num_requests:
            return
        waiting = [client for client in self.clients.values() if client.place is None]
        assert self.router.num_waiting == len(waiting)
        for client in waiting:
            assert self.now < client.waits_since + self.limits.max_wait
            deadline = client.request.deadline
            assert deadline is None or self.now < deadline

    @invariant()
    def moves_and_retries_are_bounded(self) -> None:
        if not self.num_requests:
            return
        share = self.limits.retry_share
        assert self.num_retries + self.num_hedges <= share * 3 * self.num_requests + 3
        assert all(client.hedges <= 1 for client in self.clients.values())
        if not self.limits.max_migrations:
            kind = self.num_retries or self.num_hedges
            assert all(not c.moves or kind for c in self.clients.values())

    @invariant()
    def no_engine_works_for_nobody(self) -> None:
        if not self.num_requests:
            return
        wanted = {client.place for client in self.clients.values()}
        for replica, engine in self.engines.items():
            assert all((replica, name) in wanted for name in engine.attempts), "not cancelled"

    @invariant()
    def a_drain_ends(self) -> None:
        if self.num_requests and self.router.draining and not self.clients:
            assert self.drained == 1

    def teardown(self) -> None:
        if not self.num_requests:
            return
        self.feed(Drain(5.0))
        self.now += 20.0
        self.feed(Tick())
        assert not self.clients, "accepted and never ended"


TestRouterStates = RouterStates.TestCase
TestRouterStates.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
