"""What the supervisor starts, from settings."""

from __future__ import annotations

import socket
from dataclasses import fields
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.plans import autoscaler_config, engine_plan, gateway_process
from headrace.config import Config, Environment
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.server.settings import AutoscalerSettings, EngineProcess, ModelFile, ServerConfig
from headrace.types import ReplicaId

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
            return gateway_process(
                Config(server=ServerConfig(**server)),
                listening=listening,
                directory=tmp_path,
                model=MODEL,
            )

    first, second = process(), process()
    assert len(first.cache_secret) == 64
    assert first.cache_secret != second.cache_secret
    assert process(key_file="/keys.json").cache_secret == ""
    assert first.engines == {}
    assert first.control == str(tmp_path / "g0.control")


def test_an_engine_is_told_its_name_and_address(tmp_path: Path):
    environment = Environment(variables={}, directory=tmp_path, home=tmp_path)
    describe = engine_plan(Config(), environment, model=MODEL, directory=tmp_path)
    local = describe(ReplicaId("r7"))
    process = msgspec.json.decode(local.spec.settings, type=EngineProcess)
    assert (process.replica, process.socket) == ("r7", str(tmp_path / "r7.sock"))
    assert local.address == process.socket
    assert local.spec.name == "engine r7"
