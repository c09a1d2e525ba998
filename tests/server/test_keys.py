"""API keys: who is let in as whom, and what happens when the key file changes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    AuthenticationFailed,
    InvalidRequest,
    RateLimited,
    StartError,
    UsageError,
)
from headrace.server.gateway.http.messages import RequestHead
from headrace.server.key_file import (
    KeyBook,
    KeyEntry,
    changing,
    read_key_file,
    write_key_file,
)
from headrace.server.keys import (
    ANYBODY,
    KEY_BYTES,
    KeyFile,
    Keys,
    KeySeats,
    Principal,
    digest_of,
    new_key,
    open_keys,
    prefix_of,
    stamp_of,
)
from headrace.types import PriorityClass

PEPPER = "ab" * 32
NOW = 1_000_000


def key_of(number: int) -> str:
    return new_key(number.to_bytes(KEY_BYTES))


def entry_of(number: int, **fields: object) -> KeyEntry:
    key = key_of(number)
    entry = {
        "name": f"key{number}",
        "tenant": f"tenant{number}",
        "hmac": digest_of(key, PEPPER),
        "prefix": prefix_of(key),
        "created": 0,
    }
    return KeyEntry(**{**entry, **fields})  # type: ignore[arg-type]


def book_of(*entries: KeyEntry) -> KeyBook:
    return KeyBook(pepper=PEPPER, cache_secret="cd" * 32, keys=entries)


def head_of(key: str | None = None, **headers: str) -> RequestHead:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    if key is not None:
        fields[b"authorization"] = b"Bearer " + key.encode()
    return RequestHead("GET", "/", fields, keep_alive=True, http10=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keys(path: Path) -> Keys:
    """Of a file with every kind of key."""
    write_key_file(
        path,
        book_of(
            entry_of(1, highest=PriorityClass.INTERACTIVE, weight=2.0, max_concurrent=3),
            entry_of(2, revoked=5),
            entry_of(3, expires=NOW),
            entry_of(4, expires=NOW + 1),
            entry_of(5, trusted=True),
        ),
    )
    return follow(path)


def follow(path: Path, *plain: str) -> Keys:
    return Keys(plain, file=KeyFile(path, read_key_file(path), stamp_of(path)), time=lambda: NOW)


def refusal(keys: Keys, key: str | None) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        keys.identify(head_of(key))
    assert caught.value.status == 401
    if key:
        assert key not in caught.value.message
    return caught.value.message


def test_a_valid_key_says_who_asks(keys: Keys):
    assert keys.identify(head_of(key_of(1))) == Principal(
        name="key1",
        tenant="tenant1",
        highest=PriorityClass.INTERACTIVE,
        weight=2.0,
        max_concurrent=3,
    )
    assert keys.identify(head_of(x_api_key=key_of(4))).name == "key4"


def test_every_other_key_is_refused_with_its_own_reason(keys: Keys):
    assert "is needed" in refusal(keys, None)
    assert "mistyped" in refusal(keys, "sk-something")
    assert "not known" in refusal(keys, key_of(9))
    assert "revoked" in refusal(keys, key_of(2))
    assert "expired" in refusal(keys, key_of(3))


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.data())
def test_one_wrong_character_is_noticed(random: bytes, data: st.DataObject):
    key = new_key(random)
    assert re.fullmatch("hr-[a-z2-7]{48}", key)
    place = data.draw(st.integers(3, len(key) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(key[place].__ne__))
    keys = Keys(file=KeyFile(Path("never-read"), book_of(), None))
    assert "mistyped" in refusal(keys, key[:place] + other + key[place + 1 :])
    assert "mistyped" in refusal(keys, key[:-1])


def test_keys_with_one_prefix_are_told_apart(path: Path):
    same = {"prefix": "hr-aaaaaa"}
    first, second = new_key(bytes(KEY_BYTES)), new_key(bytes(KEY_BYTES - 1) + b"\1")
    write_key_file(
        path,
        book_of(
            entry_of(1, hmac=digest_of(first, PEPPER), **same),
            entry_of(2, hmac=digest_of(second, PEPPER), **same),
        ),
    )
    keys = follow(path)
    assert prefix_of(first) == prefix_of(second) == "hr-aaaaaa"
    assert [keys.identify(head_of(key)).name for key in (first, second)] == ["key1", "key2"]


def test_without_keys_anybody_may_come_in_and_with_an_empty_file_nobody(path: Path):
    assert Keys().identify(head_of()) is ANYBODY
    write_key_file(path, book_of())
    assert "not known" in refusal(follow(path), key_of(1))


def test_the_key_of_the_settings_works_beside_a_file(keys: Keys, path: Path):
    both = follow(path, "plain")
    assert both.identify(head_of("plain")).tenant == "default"
    assert both.identify(head_of(key_of(1))).tenant == "tenant1"
    assert Keys(["plain"]).identify(head_of("plain")).name == "api-key"
    assert "is needed" in refusal(Keys(["plain"]), "other")


def test_only_a_trusted_key_speaks_for_other_tenants(keys: Keys):
    field = {"x_headrace_tenant": "another"}
    assert keys.identify(head_of(key_of(5), **field)).tenant == "another"
    assert keys.identify(head_of(key_of(5))).tenant == "tenant5"
    assert keys.identify(head_of(key_of(1), **field)).tenant == "tenant1"
    assert Keys(["plain"]).identify(head_of("plain", **field)).tenant == "default"
    assert Keys().identify(head_of(**field)).tenant == "default"
    for wrong in ("", "a b", "../x", "a" * 65, "a\n"):
        with pytest.raises(InvalidRequest, match="1 to 64"):
            keys.identify(head_of(key_of(5), x_headrace_tenant=wrong))


@pytest.mark.parametrize(
    ("highest", "wanted", "given"),
    [
        ("interactive", "interactive", "interactive"),
        ("standard", "interactive", "standard"),
        ("batch", "interactive", "batch"),
        ("standard", "batch", "batch"),
    ],
)
def test_a_keys_highest_class_caps_what_is_asked_for(highest: str, wanted: str, given: str):
    principal = Principal(name="x", highest=PriorityClass(highest))
    assert principal.capped(PriorityClass(wanted)) is PriorityClass(given)


def test_a_limited_key_has_only_so_many_requests_open():
    seats, limited, free = KeySeats(), Principal(name="a", max_concurrent=2), Principal(name="b")
    for _ in range(5):
        seats.take(free)
    seats.take(limited)
    seats.take(limited)
    with pytest.raises(RateLimited, match="2 requests open"):
        seats.take(limited)
    seats.leave(limited)
    seats.take(limited)


def test_a_changed_file_is_read_again(path: Path):
    write_key_file(path, book_of(entry_of(1)))
    file = KeyFile(path, read_key_file(path), stamp_of(path))
    keys = Keys(file=file, time=lambda: NOW)
    write_key_file(path, book_of(entry_of(1, revoked=1), entry_of(2)))
    assert keys.identify(head_of(key_of(1))).name == "key1"
    file.look()
    assert "revoked" in refusal(keys, key_of(1))
    assert keys.identify(head_of(key_of(2))).name == "key2"


@pytest.mark.parametrize("how", ["broken", "open", "gone"])
def test_a_file_that_was_spoilt_is_told_of_once_and_the_last_good_keys_stay(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
):
    write_key_file(path, book_of(entry_of(1)))
    file = KeyFile(path, read_key_file(path), stamp_of(path))
    keys = Keys(file=file, time=lambda: NOW)
    if how == "gone":
        path.unlink()
    else:
        path.write_text("{" if how == "broken" else path.read_text() + "\n")
        path.chmod(0o600 if how == "broken" else 0o644)
    with caplog.at_level(logging.WARNING):
        file.look()
        file.look()
    (record,) = caplog.records
    assert str(path) in record.message
    assert "stay in force" in record.message
    assert keys.identify(head_of(key_of(1))).name == "key1"
    write_key_file(path, book_of())
    path.chmod(0o600)
    file.look()
    assert "not known" in refusal(keys, key_of(1))


def test_a_gateway_does_not_start_with_a_key_file_that_it_cannot_use(path: Path):
    with pytest.raises(UsageError, match="does not exist; make it with `headrace keys create"):
        open_keys((), path)
    write_key_file(path, book_of(entry_of(1)))
    assert open_keys((), path).cache_secret == bytes.fromhex("cd" * 32)
    assert open_keys((), None).cache_secret is None
    path.chmod(0o640)
    with pytest.raises(UsageError, match=rf"mode 0640\); run: chmod 600 {path}"):
        open_keys((), path)
    path.chmod(0o600)
    good = msgspec.json.decode(path.read_bytes())
    for wrong in (
        b"",
        b"[]",
        b"\xff",
        b'{"version":1}',
        msgspec.json.encode({**good, "version": 2}),
        msgspec.json.encode({**good, "pepper": "00"}),
        msgspec.json.encode({**good, "extra": 1}),
        msgspec.json.encode({**good, "keys": [{**good["keys"][0], "tenant": "a\n"}]}),
        b"[" * 100_000,
    ):
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match="is broken"):
            open_keys((), path)


def test_the_file_is_for_its_owner_only_and_replaced_as_a_whole(path: Path):
    write_key_file(path, book_of(entry_of(1)))
    first = path.stat()
    write_key_file(path, book_of(entry_of(1), entry_of(2)))
    assert path.stat().st_mode & 0o777 == first.st_mode & 0o777 == 0o600
    assert path.stat().st_ino != first.st_ino
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]
    assert read_key_file(path) == book_of(entry_of(1), entry_of(2))


def test_a_link_to_a_key_file_stays_one(path: Path, tmp_path: Path):
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write_key_file(link, book_of(entry_of(1)))
    assert link.is_symlink()
    assert read_key_file(path) == book_of(entry_of(1))


def test_two_commands_do_not_change_a_file_at_one_time(path: Path):
    second = changing(path)
    with changing(path), pytest.raises(StartError, match="another command is changing"), second:
        raise AssertionError("both")
    with changing(path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match="cannot write"):
        write_key_file(file / "keys.json", book_of())
    with pytest.raises(StartError, match="cannot write"), changing(file / "keys.json"):
        pass
