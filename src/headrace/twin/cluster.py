"""Cluster: a gateway, replicas, a controller and clients in virtual time, wired by build_cluster.

    Clients --RequestArrived--> Gateway(Router) ==Links==> Replica(EngineCore, device)
                                   |  ^                       x n, started and ended by
                            PoolLoad  drains, resets          Pool(Autoscaler)

Router, EngineCore, KVCache and Autoscaler are the ones that serve; each process has a clock of
its own. A run is a function of trace, config and code.
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
from headrace.core.router.machine import Router
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.machine import Source
from headrace.twin.capacity import executor_spec
from headrace.twin.clients import Clients, Writer
from headrace.twin.executor import RooflineExecutor
from headrace.twin.gateway import Connection, SimulatedGateway
from headrace.twin.network import Link
from headrace.twin.pool import Life, SimulatedPool
from headrace.twin.replica import SimulatedReplica
from headrace.twin.simulator import Simulator
from headrace.twin.texts import mix
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self.deliver: Callable[[RouterEvent], None] = _nobody

    def launch(self, name: ReplicaId) -> Life:
        """Return a new life of a replica."""
        self._num_launched += 1
        number, config, simulator = self._num_launched, self._config, self._simulator
        to_gateway: Link[RouterEvent] = Link(
            simulator,
            lambda event: self.deliver(event),
            delay=config.network,
            random=self._random(2 * number),
        )
        process = SimulatedReplica(
            name,
            build_engine_core(self._spec, config.scheduler),
            RooflineExecutor(self._step_time, self._spec.vocab_size),
            simulator=simulator,
            clock_offset=clock_offset(config.seed, number),
            send=to_gateway.send,
        )
        to_engine: Link[ToEngine] = Link(
            simulator,
            process.receive,
            delay=config.network,
            random=self._random(2 * number + 1),
        )
        return Life(process, Connection(to_engine=to_engine, to_gateway=to_gateway))

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, number])


def _nobody(event: RouterEvent) -> None:
    raise AssertionError(f"{event} before there is a gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All that runs. ``run`` it once, then read the parts."""

    config: SimulationConfig
    simulator: Simulator
    gateway: SimulatedGateway
    pool: SimulatedPool
    clients: Clients
    spec: ExecutorSpec
    kv_used: list[float]  # of all replicas together, at each report to the controller

    def run(self, on_progress: Callable[[Seconds], None] | None = None) -> None:
        """Play the trace until every request has ended. ``on_progress`` hears the time."""
        simulator, config, gateway = self.simulator, self.config, self.gateway
        self.pool.open(gateway)
        for kill in config.kills:
            name = ReplicaId(f"r{kill.replica}")
            simulator.call_at(kill.at, partial(self.pool.kill, name), Source.PEER)
        simulator.call_every(config.beat_period, self._beat)
        simulator.call_every(config.load_period, self._report)
        self.clients.start(gateway.driver.deliver, lambda: gateway.driver.now)
        while not self.clients.are_done:
            simulator.run(until=simulator.now + SLICE_SECONDS, max_events=MAX_EVENTS)
            if on_progress is not None:
                on_progress(simulator.now)

    def _beat(self) -> bool:
        self.pool.beat()
        return not self.clients.are_done

    def _report(self) -> bool:
        load = self.gateway.load()
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
        ),
    )
    gateway = SimulatedGateway(
        Router(config.router, build_policy(config.policy, config.seed)),
        clients.ledger,
        simulator=simulator,
        clock_offset=clock_offset(config.seed, -2),
        on_emptied=pool.emptied,
    )
    launcher.deliver = gateway.driver.deliver
    return Cluster(
        config=config,
        simulator=simulator,
        gateway=gateway,
        pool=pool,
        clients=clients,
        spec=spec,
        kv_used=[],
    )


def clock_offset(seed: int, number: int) -> Seconds:
    """Return how far a process's clock is from the simulator's, in whole milliseconds."""
    return mix(seed * 1_000_003 + number) % int(LARGEST_OFFSET * 1000) / 1000
