"""``headrace keys``, as it is called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from headrace.cli.main import main
from headrace.server.gateway.http.messages import RequestHead
from headrace.server.key_file import read_key_file
from headrace.server.keys import open_keys
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headrace.server.keys import Principal

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "headrace" / "keys.json"


@pytest.fixture
def keys(path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command; return its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["keys", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def who(path: Path, key: str) -> Principal:
    fields = {b"authorization": b"Bearer " + key.encode()}
    head = RequestHead("GET", "/", fields, keep_alive=True, http10=False)
    return open_keys((), path).identify(head)


def test_a_created_key_works_is_shown_once_and_never_kept(keys: Run, path: Path):
    code, out, err = keys("create", "alice")
    key = out.strip()
    assert code == 0
    assert key.startswith("hr-")
    assert key not in err
    assert key not in path.read_text()
    assert who(path, key).name == "alice"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert key not in keys("list")[1]


def test_what_a_key_may_do_is_in_the_file(keys: Run, path: Path):
    flags = "--tenant lab --class batch --weight 2.5 --trusted --expires 1.5 --max-concurrent 4"
    tight = "--tightest-ttft-ms 250 --tightest-itl-ms 40"
    key = keys("create", "bob", *flags.split(), *tight.split())[1].strip()
    principal = who(path, key)
    assert (principal.tenant, principal.highest) == ("lab", PriorityClass.BATCH)
    assert (principal.weight, principal.trusted, principal.max_concurrent) == (2.5, True, 4)
    assert (principal.tightest_ttft, principal.tightest_itl) == (0.25, 0.04)
    (entry,) = read_key_file(path).keys
    assert entry.expires == entry.created + 129_600


def test_the_list_shows_state_and_no_secrets(keys: Run, path: Path):
    for name in ("alice", "bob"):
        keys("create", name)
    keys("revoke", "bob")
    heading, alice, bob = keys("list")[1].splitlines()
    assert heading.split()[0] == "NAME"
    assert alice.split()[0] == "alice"
    assert alice.endswith("valid")
    assert "revoked" in bob
    rows = json.loads(keys("list", "--json")[1])
    assert [row["name"] for row in rows] == ["alice", "bob"]
    assert "hmac" not in rows[0]


def test_a_key_is_revoked_by_name_or_prefix_and_its_name_is_free_again(keys: Run, path: Path):
    keys("create", "alice")
    (entry,) = read_key_file(path).keys
    assert keys("revoke", entry.prefix)[0] == 0
    assert keys("create", "alice")[0] == 0
    assert keys("revoke", "alice")[0] == 0
    assert all(each.revoked for each in read_key_file(path).keys)
    assert "revoked already" in keys("revoke", "alice")[2]


def test_another_file_may_be_named(keys: Run, path: Path, tmp_path: Path):
    other = tmp_path / "deep" / "other.json"
    assert keys("create", "alice", "--file", str(other))[0] == 0
    assert [entry.name for entry in read_key_file(other).keys] == ["alice"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("create alice", "there is a key named alice"),
        ("create a/b", "name is 'a/b'; it must be 1 to 64 letters"),
        ("create b --tenant a:b", "tenant is 'a:b'; it must be"),
        ("create b --weight 0", "weight is 0.0; it must be 0.01 to 100"),
        ("create b --weight nan", "weight is nan"),
        ("create b --max-concurrent -1", "max_concurrent is -1"),
        ("create b --expires 0", "--expires 0: must be above 0"),
        ("create b --expires inf", "--expires inf"),
        ("revoke alcie", "did you mean alice?"),
        ("revoke zzzzzzz", "`headrace keys list` shows all"),
        ("list --file /nonexistent/keys.json", "does not exist; make it with"),
    ],
)
def test_bad_input_is_named_in_one_line(keys: Run, path: Path, arguments: str, words: str):
    keys("create", "alice")
    before = path.read_bytes()
    code, out, err = keys(*arguments.split())
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not out
    assert path.read_bytes() == before


def test_a_prefix_of_several_keys_is_not_enough(keys: Run, path: Path):
    for index in range(40):  # two of 32 letters are the same
        keys("create", f"key{index}")
    prefixes = [entry.prefix[:4] for entry in read_key_file(path).keys]
    twice = next(each for each in prefixes if prefixes.count(each) > 1)
    code, _, err = keys("revoke", twice)
    assert code == 2
    assert "give the name or the whole prefix" in err
