"""Settings: default < file < environment < flag, and errors that name the place."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import (
    SECRETS,
    Config,
    Environment,
    Loaded,
    Origin,
    human_int,
    load_config,
    settings,
)
from headrace.errors import ConfigError


def load(
    tmp_path: Path,
    file: str | None = None,
    *,
    variables: dict[str, str] | None = None,
    path: Path | None = None,
    **flags: str,
) -> Loaded:
    """``flags`` are by section__key; ``file`` is ./headrace.toml."""
    if file is not None:
        (tmp_path / "headrace.toml").write_text(file)
    environment = Environment(variables=variables or {}, directory=tmp_path, home=tmp_path / "home")
    origins = {
        name.replace("__", "."): Origin(value, f"--{name.partition('__')[2].replace('_', '-')}")
        for name, value in flags.items()
    }
    return load_config(flags=origins, environment=environment, path=path)


def test_without_anything_all_values_are_defaults(tmp_path: Path):
    loaded = load(tmp_path)
    assert loaded.config == Config()
    assert loaded.origins == {}


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path):
    file = "[server]\nport = 1\nreplicas = 2\nhost = 'a'\n"
    variables = {"HEADRACE_SERVER_PORT": "3", "HEADRACE_SERVER_REPLICAS": "4"}
    loaded = load(tmp_path, file, variables=variables, server__port="5")
    server = loaded.config.server
    assert (server.port, server.replicas, server.host) == (5, "4", "a")
    assert loaded.origins == {
        "server.port": "--port",
        "server.replicas": "HEADRACE_SERVER_REPLICAS",
        "server.host": f"{tmp_path / 'headrace.toml'}: server.host",
    }


def test_files_are_looked_for_here_then_in_the_users_settings(tmp_path: Path):
    own = tmp_path / "home" / ".config" / "headrace"
    own.mkdir(parents=True)
    (own / "headrace.toml").write_text("[server]\nport = 1\n")
    assert load(tmp_path).config.server.port == 1
    assert load(tmp_path, "[server]\nport = 2\n").config.server.port == 2
    named = tmp_path / "named.toml"
    named.write_text("[server]\nport = 3\n")
    assert load(tmp_path, path=named).config.server.port == 3


def test_text_becomes_numbers_and_truth_values(tmp_path: Path):
    variables = {
        "HEADRACE_ENGINE_KV_CACHE_TOKENS": "25.6k",
        "HEADRACE_ENGINE_MAX_MODEL_LEN": "4K",
        "HEADRACE_SERVER_DRAIN_SECONDS": "2.5",
        "HEADRACE_SERVER_INSECURE_NO_AUTH": "yes",
        "HEADRACE_MODEL_NAME": "7k",  # a name stays a name
        "HEADRACE_LOG_FORMAT": "json",
    }
    config = load(tmp_path, variables=variables).config
    assert config.engine.kv_cache_tokens == 25_600
    assert config.engine.max_model_len == 4096
    assert config.server.drain_seconds == 2.5
    assert config.server.insecure_no_auth is True
    assert config.model.name == "7k"
    assert config.log.format == "json"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1k", 1000), ("1K", 1024), ("25.6k", 25_600), ("2m", 2_000_000), ("1M", 1 << 20)],
)
def test_human_numbers(text: str, number: int):
    assert human_int(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5K", "-1k", "1kk", "1.0001k", "0x1k", "\u0661k"])
def test_what_is_no_human_number(text: str):
    assert human_int(text) is None


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("[server]\nprot = 1", "server.prot: unknown setting; did you mean server.port?"),
        ("[sevrer]\nport = 1", "did you mean server?"),
        ("port = 1", "port stands outside a section"),
        ("server = 1", "server stands outside a section"),
        ("[server]\nport = 'x'", "server.port is 'x': expected `int`"),
        ("[server]\nport = 1.5", "server.port is 1.5: expected `int`"),
        ("[server]\nport = true", "server.port is True: expected `int`"),
        ("[server]\nport = 70000", "server.port is 70000: expected `int` <= 65535"),
        ("[server", "headrace.toml: not TOML"),
        ("[gateway.http]\nidle_timeout = 1", "gateway.http: unknown setting"),
    ],
)
def test_errors_in_a_file_name_it_and_the_key(tmp_path: Path, file: str, words: str):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, file)
    assert words in str(error.value)
    assert str(tmp_path / "headrace.toml") in str(error.value)


def test_errors_in_the_environment_and_in_flags_name_them(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"HEADRACE_SERVER_PROT: .* HEADRACE_SERVER_PORT"):
        load(tmp_path, variables={"HEADRACE_SERVER_PROT": "1"})
    with pytest.raises(ConfigError, match="--level is 'loud'"):
        load(tmp_path, log__level="loud")
    with pytest.raises(ConfigError, match="--port is '-1': expected `int` >= 0"):
        load(tmp_path, server__port="-1")


def test_a_number_in_a_file_is_text_where_text_is_wanted(tmp_path: Path):
    server = load(tmp_path, "[server]\nreplicas = 2\nadmin = '2'\n").config.server
    assert (server.replicas, server.admin) == ("2", "2")


def test_a_file_that_was_named_must_exist(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no\.toml: No such file"):
        load(tmp_path, path=tmp_path / "no.toml")


def test_the_fingerprint_changes_with_every_setting_but_the_secrets(tmp_path: Path):
    plain = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == plain
    assert load(tmp_path, server__port="1").fingerprint != plain
    assert load(tmp_path, server__api_key="secret").fingerprint == plain


def test_a_secret_is_never_in_an_error(tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, server__api_key="s" * 600)
    assert "sss" not in str(error.value)


@given(st.sampled_from(sorted(settings())), st.text(max_size=12))
def test_any_text_is_a_value_or_a_config_error(key: str, text: str):
    environment = Environment(
        variables={}, directory=Path("/nonexistent"), home=Path("/nonexistent")
    )
    try:
        loaded = load_config(flags={key: Origin(text, "--flag")}, environment=environment)
    except ConfigError as error:
        assert str(error).startswith("--flag")  # noqa: PT017
    else:
        section, name = key.split(".")
        value = msgspec.to_builtins(loaded.config)[section][name]
        assert value is not None


def test_every_setting_has_words_and_every_secret_exists():
    for key, field in settings().items():
        metas = [entry for entry in field.type.__metadata__ if isinstance(entry, msgspec.Meta)]
        assert any(meta.description for meta in metas), key
    assert set(settings()) >= SECRETS
