"""What the supervisor starts, from settings."""

from __future__ import annotations

import socket
from dataclasses import fields
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.plans import autoscaler_config, engine_plan, gateway_plan, gateway_start
from headrace.config import Config, Environment
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.server.settings import AutoscalerSettings, EngineProcess, ModelFile, ServerConfig
from headrace.types import ReplicaId, Role

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.server.settings import GatewayProcess

MODEL = ModelFile(path="/m.gguf", name="m")


def test_the_settings_of_the_autoscaler_are_its_config():
    assert autoscaler_config(Config(server=ServerConfig(drain_seconds=10))) == AutoscalerConfig(
        drain_limit=15
    )
    settings = {field.name for field in msgspec.structs.fields(AutoscalerSettings)}
    assert settings == {field.name for field in fields(AutoscalerConfig)} - {"drain_limit"}


def test_each_server_has_a_cache_secret_unless_the_key_file_holds_one(tmp_path: Path):
    def process(**server: str) -> GatewayProcess:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            describe = gateway_plan(
                Config(server=ServerConfig(**server)),
                listening=[listening],
                directory=tmp_path,
                model=MODEL,
            )
            return describe(0, 0)

    first, second = process(), process()
    assert len(first.cache_secret) == 64
    assert first.cache_secret != second.cache_secret
    assert process(key_file="/keys.json").cache_secret == ""
    assert first.engines == {}
    assert first.control == str(tmp_path / "g0.control")


def test_an_engine_is_told_its_name_and_address(tmp_path: Path):
    environment = Environment(variables={}, directory=tmp_path, home=tmp_path)
    describe = engine_plan(Config(), environment, model=MODEL, directory=tmp_path)
    local = describe(ReplicaId("r7"), Role.PREFILL)
    process = msgspec.json.decode(local.spec.settings, type=EngineProcess)
    assert (process.replica, process.socket) == ("r7", str(tmp_path / "r7.sock"))
    assert process.role is local.role is Role.PREFILL
    assert local.address == process.socket
    assert local.spec.name == "engine r7"


def test_gateways_share_secrets_and_gossip_and_each_has_its_socket(tmp_path: Path):
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        describe = gateway_plan(
            Config(), listening=[first, second], directory=tmp_path, model=MODEL
        )
        g0, g1, successor = describe(0, 0), describe(1, 0), describe(1, 3)
        assert (g0.listening_fd, g1.listening_fd) == (first.fileno(), second.fileno())
        assert successor.listening_fd == g1.listening_fd
    assert g0.cache_secret == g1.cache_secret == successor.cache_secret
    assert [each.name for each in (g0, g1, successor)] == ["g0", "g1", "g1-4"]
    assert len({each.control for each in (g0, g1, successor)}) == 3
    assert g0.gossip == g1.gossip == successor.gossip
    assert [g0.gossip[each.place] for each in (g0, g1, successor)] == [
        str(tmp_path / f"g{place}.gossip") for place in (0, 1, 1)
    ]
    assert gateway_start(successor).spec.name == "gateway g1-4"
    assert gateway_start(successor).control == tmp_path / "g1-4.control"
