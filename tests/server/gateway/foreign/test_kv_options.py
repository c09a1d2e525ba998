"""Options of replicas that publish KV events."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from headrace.errors import MissingExtra, ModelFileError, UsageError
from headrace.server.gateway.foreign import kv_socket
from headrace.server.gateway.foreign.address import parse_replica, parse_replicas
from headrace.server.gateway.foreign.kv_options import check_files, pool_of
from headrace.testing.tiny_tokenizer import write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TOLD = "http://a:1,model=m,tokenizer=/t,kv-events=tcp://a:5557"


def test_events_have_a_place_a_tokenizer_and_a_model() -> None:
    replica = parse_replica(f"{TOLD},kv-replay=tcp://[::1]:5558,block-size=128,alias=big")
    assert (replica.kv_events, replica.kv_replay) == ("tcp://a:5557", "tcp://[::1]:5558")
    assert (replica.tokenizer, replica.block_size, pool_of(replica)) == ("/t", 128, "big")
    assert parse_replica("http://a:1").kv_events == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http://a:1,model=m,kv-events=tcp://a:5557", "kv-events needs tokenizer="),
        ("http://a:1,tokenizer=/t,kv-events=tcp://a:5557", "kv-events needs model="),
        ("http://a:1,tokenizer=/t", "tokenizer= is for replicas with kv-events="),
        ("http://a:1,block-size=16", "block-size= is for replicas with kv-events="),
        ("http://a:1,kv-replay=tcp://a:1", "kv-replay= is for replicas with kv-events="),
        ("http://a:1,kv-events=a:5557", "write it like tcp://HOST:5557"),
        ("http://a:1,kv-events=tcp://*:5557", "write it like tcp://HOST:5557"),
        ("http://a:1,kv-events=tcp://a", "write it like tcp://HOST:5557"),
        (f"{TOLD},block-size=0", "use 1 to 4096"),
        (f"{TOLD},block-size=many", "use 1 to 4096"),
        (f"{TOLD},kv-event=tcp://a:1", "options are .*kv-events="),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_say(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_replica(text)


@pytest.mark.parametrize("other", ["tokenizer=/u", "tokenizer=/t,block-size=32"])
def test_prompts_of_one_model_have_one_name(other: str) -> None:
    with pytest.raises(UsageError, match=r"both serve m: say one tokenizer= and one block-size="):
        parse_replicas([TOLD, f"http://b:1,model=m,kv-events=tcp://b:1,{other}"])
    fine = f"http://b:1,model=x,kv-events=tcp://b:1,{other}"
    assert len(parse_replicas([TOLD, fine, "http://c:1,model=m"])) == 3


def test_a_tokenizer_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    pytest.importorskip("zmq", reason="pip install '.[zmq]'")
    check_files([parse_replica(TOLD.replace("/t", str(path)))])
    check_files([parse_replica("http://a:1")])
    with pytest.raises(ModelFileError, match="cannot read"):
        check_files([parse_replica(TOLD.replace("/t", str(tmp_path / "none.json")))])


def test_without_zeromq_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_socket, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'headrace\[zmq\]'"):
        check_files([parse_replica(TOLD)])
    check_files([parse_replica("http://a:1")])


def test_a_gateway_without_events_does_not_load_zeromq() -> None:
    import subprocess

    code = "import sys, headrace.cli.children.foreign; sys.exit('zmq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
