"""Flags and the page of settings follow the settings themselves."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from headrace.cli.flags import add_flags, load_settings
from headrace.cli.reference import reference
from headrace.cli.serve import FLAGS
from headrace.config import Environment, settings
from headrace.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "config.md"


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, FLAGS)
    return parser.parse_args(arguments)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(variables={}, directory=tmp_path, home=tmp_path)


def test_every_flag_sets_its_setting(environment: Environment):
    arguments = ("--port", "1k", "--insecure-no-auth", "--max-model-len", "4K", "--model", "m")
    config = load_settings(parse(*arguments), FLAGS, environment).config
    assert config.server.port == 1000
    assert config.server.insecure_no_auth is True
    assert config.engine.max_model_len == 4096
    assert config.model.name == "m"
    assert {flag.key for flag in FLAGS} <= set(settings())


def test_a_flag_that_is_not_given_leaves_its_setting_alone(environment: Environment):
    assert load_settings(parse(), FLAGS, environment).origins == {}


def test_an_error_names_the_flag(environment: Environment):
    with pytest.raises(ConfigError, match="--max-num-seqs is '0'"):
        load_settings(parse("--max-num-seqs", "0"), FLAGS, environment)


def test_flags_have_the_names_that_users_of_other_servers_type():
    names = {flag.name for flag in FLAGS}
    assert names >= {
        "--host",
        "--port",
        "--model",
        "--served-model-name",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--api-key",
    }


def test_the_page_of_settings_is_current():
    assert DOCS.read_text() == reference(), "run: python -m headrace.cli.reference > docs/config.md"
