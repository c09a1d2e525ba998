"""Cluster: gateways, replicas, a controller and clients in virtual time, wired by build_cluster.

    Clients --RequestArrived--> Gateway(Router) ==Links==> Replica(EngineCore, device)
                                   |  ^                       x n, started and ended by
                            PoolLoad  drains, resets          Pool(Autoscaler)

Router, Gossip, EngineCore, KVCache and Autoscaler are the ones that serve; each process has a
clock of its own. A run is a function of trace, config and code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.autoscaler.machine import Autoscaler
from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.balancer.registry import build_policy
from headrace.core.kvcache.chain import chain_root
from headrace.core.router.gossip import Gossip
from headrace.core.router.machine import Router
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.machine import Source
from headrace.twin.capacity import executor_spec
from headrace.twin.clients import Clients, Writer
from headrace.twin.executor import RooflineExecutor
from headrace.twin.front import SimulatedFront
from headrace.twin.gateway import Quota, SimulatedGateway
from headrace.twin.lending import Lending
from headrace.twin.lines import Connection, Lines
from headrace.twin.network import Link
from headrace.twin.pool import Life, SimulatedPool
from headrace.twin.replica import SimulatedReplica
from headrace.twin.simulator import Simulator
from headrace.twin.texts import mix
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.costs.roofline import StepTime
    from headrace.core.router.events import RouterEvent
    from headrace.executor.base import ExecutorSpec
    from headrace.twin.config import SimulationConfig
    from headrace.twin.replica import ToEngine
    from headrace.twin.traces.arrivals import Trace
    from headrace.types import Seconds

SLICE_SECONDS = 5.0
"""Of virtual time, between two looks at the progress."""
MAX_EVENTS = 1 << 40
LARGEST_OFFSET = 1000.0
"""Seconds that the clocks of two processes may differ by."""


class Launcher:
    """Makes processes: each a fresh engine with links of its own."""

    def __init__(self, config: SimulationConfig, spec: ExecutorSpec, simulator: Simulator) -> None:
        self._config = config
        self._spec = spec
        self._simulator = simulator
        self._step_time: StepTime = config.deployment.step_time()
        self._num_launched = 0
        self.gateways: Sequence[SimulatedGateway] = ()
        self.lending = Lending(
            spec,
            bytes_per_second=config.kv_bandwidth,
            round_trip=2 * (config.network.seconds + config.network.jitter),
        )

    def launch(self, name: ReplicaId) -> Life:
        """Return a new life of a replica."""
        self._num_launched += 1
        number, config, simulator = self._num_launched, self._config, self._simulator
        lines = Lines()
        process = SimulatedReplica(
            name,
            build_engine_core(self._spec, config.scheduler, self.lending.config),
            RooflineExecutor(self._step_time, self._spec.vocab_size),
            simulator=simulator,
            clock_offset=clock_offset(config.seed, number),
            send=lines.send,
            lending=self.lending,
        )
        lines.connections = [
            self._connection(number, index, process, lines) for index in range(len(self.gateways))
        ]
        return Life(process, lines)

    def _connection(
        self, number: int, index: int, process: SimulatedReplica, lines: Lines
    ) -> Connection:
        def receive(message: ToEngine) -> None:
            lines.note(index, message)
            process.receive(message)

        to_gateway: Link[RouterEvent] = Link(
            self._simulator,
            self.gateways[index].driver.deliver,
            delay=self._config.network,
            random=self._random(2 * number, index),
        )
        to_engine: Link[ToEngine] = Link(
            self._simulator,
            receive,
            delay=self._config.network,
            random=self._random(2 * number + 1, index),
        )
        return Connection(to_engine=to_engine, to_gateway=to_gateway)

    def _random(self, number: int, gateway: int) -> np.random.Generator:
        place = (gateway,) if gateway else ()
        return np.random.default_rng([self._config.seed, number, *place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All that runs. ``run`` it once, then read the parts."""

    config: SimulationConfig
    simulator: Simulator
    front: SimulatedFront
    pool: SimulatedPool
    clients: Clients
    spec: ExecutorSpec
    kv_used: list[float]  # of all replicas together, at each report to the controller

    @property
    def gateway(self) -> SimulatedGateway:
        """The first gateway, the only one unless the config says otherwise."""
        return self.front.gateways[0]

    def run(self, on_progress: Callable[[Seconds], None] | None = None) -> None:
        """Play the trace until every request has ended. ``on_progress`` hears the time."""
        simulator, config, front = self.simulator, self.config, self.front
        self.pool.open(front)
        for kill in config.kills:
            name = ReplicaId(f"r{kill.replica}")
            simulator.call_at(kill.at, partial(self.pool.kill, name), Source.PEER)
        for slow in config.slows:
            name = ReplicaId(f"r{slow.replica}")
            simulator.call_at(slow.at, partial(self.pool.slow, name, slow.factor), Source.PEER)
        simulator.call_every(config.beat_period, self._beat)
        simulator.call_every(config.load_period, self._report)
        if config.gossip_period is not None and config.gateways > 1:
            front.gossip(
                simulator,
                config.gossip_period,
                config.network,
                goes_on=lambda: not self.clients.are_done,
            )
        self.clients.start(front.choose)
        while not self.clients.are_done:
            simulator.run(until=simulator.now + SLICE_SECONDS, max_events=MAX_EVENTS)
            if on_progress is not None:
                on_progress(simulator.now)

    def _beat(self) -> bool:
        self.pool.beat()
        return not self.clients.are_done

    def _report(self) -> bool:
        load = self.front.load()
        if load.replicas:
            self.kv_used.append(sum(r.kv_used for r in load.replicas) / len(load.replicas))
        self.pool.report(load)
        return not self.clients.are_done


def build_cluster(config: SimulationConfig, trace: Trace) -> Cluster:
    """Wire a cluster. Raises UsageError and ModelTooLarge."""
    simulator = Simulator()
    batched = config.scheduler.max_num_batched_tokens
    spec = executor_spec(config.deployment, block_size=config.block_size, max_step_tokens=batched)
    root = chain_root(salt=b"", model_identity=spec.model_identity, block_size=spec.block_size)
    clients = Clients(
        iter(trace.arrivals),
        Writer(spec=spec, chain_root=root, timeout=config.request_timeout),
        simulator=simulator,
        concurrency=config.concurrency,
        window=config.window,
        targets=config.targets,
        on_done=simulator.stop,
    )
    launcher = Launcher(config, spec, simulator)
    pool = SimulatedPool(
        Autoscaler(config.autoscaler),
        config.pool,
        simulator=simulator,
        clock_offset=clock_offset(config.seed, -1),
        launch=launcher.launch,
        facts=ReplicaFacts(
            block_size=spec.block_size,
            num_blocks=spec.num_blocks,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_num_batched_tokens=batched,
            peer_block_seconds=launcher.lending.block_seconds,
        ),
    )
    gossips = [Gossip(f"g{index}") for index in range(config.gateways)]
    launcher.gateways = [
        SimulatedGateway(
            Router(
                config.router,
                build_policy(config.policy, config.seed + index),
                seed=config.seed + index,
            ),
            clients.ledger,
            name=gossip.life,
            simulator=simulator,
            clock_offset=clock_offset(config.seed, -2 - index),
            quota=Quota(config.max_concurrent, gossip.held),
        )
        for index, gossip in enumerate(gossips)
    ]
    front = SimulatedFront(
        launcher.gateways,
        gossips,
        random=np.random.default_rng([config.seed, 0]),
        on_emptied=pool.emptied,
    )
    return Cluster(
        config=config,
        simulator=simulator,
        front=front,
        pool=pool,
        clients=clients,
        spec=spec,
        kv_used=[],
    )


def clock_offset(seed: int, number: int) -> Seconds:
    """Return how far a process's clock is from the simulator's, in whole milliseconds."""
    return mix(seed * 1_000_003 + number) % int(LARGEST_OFFSET * 1000) / 1000
