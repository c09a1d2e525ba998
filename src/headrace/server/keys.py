"""API keys: what they look like, and whose they are.

A key is ``hr-``, 40 characters that hold 200 random bits, and 8 that check them (base 32 of
RFC 4648 in lower case): a mistyped key is told from an unknown one, and nobody need look it up.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from base64 import b32encode
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from headrace.clock import unix_time
from headrace.core.router.seats import Seats, nobody_else
from headrace.errors import AuthenticationFailed, InvalidRequest, RateLimited, StartError
from headrace.server.key_file import NAME_PATTERN, read_key_file, stamp_of
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headrace.server.gateway.http.messages import RequestHead
    from headrace.server.key_file import KeyBook, KeyEntry, Stamp

KEY_BYTES = 25
LOOK_SECONDS = 1.0
"""How often a key file is looked at."""

MAX_KNOWN = 4096
"""Keys that need not be computed again each time they are shown."""

DEFAULT_TENANT = "default"
TENANT_FIELD = b"x-headrace-tenant"
_START = "hr-"
_CHECK_BYTES = 5
_PREFIX_LENGTH = len(_START) + 6
_KEY = re.compile(r"hr-[a-z2-7]{48}")
_NAME = re.compile(NAME_PATTERN)
_CLASSES = tuple(PriorityClass)  # most urgent first

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. ``highest`` caps the class of requests; ``max_concurrent`` 0 is no limit.

    Targets tighter than ``tightest_ttft`` and ``tightest_itl`` (seconds) become those.
    """

    name: str
    tenant: str = DEFAULT_TENANT
    highest: PriorityClass = PriorityClass.INTERACTIVE
    weight: float = 1.0
    trusted: bool = False
    max_concurrent: int = 0
    tightest_ttft: float = 0.0
    tightest_itl: float = 0.0

    def capped(self, wanted: PriorityClass) -> PriorityClass:
        """Return the class that a request gets."""
        return max(wanted, self.highest, key=_CLASSES.index)


ANYBODY = Principal(name="anybody")
"""Where no keys are wanted."""

_API_KEY = Principal(name="api-key")
"""Who has the key of the settings."""


def new_key(random: bytes) -> str:
    """Return the key of ``KEY_BYTES`` random bytes."""
    body = b32encode(random).decode().lower()
    return f"{_START}{body}{_checksum(body)}"


def prefix_of(key: str) -> str:
    """Return the beginning of a key, by which people know it."""
    return key[:_PREFIX_LENGTH]


def digest_of(key: str, pepper: str) -> str:
    """Return what a key file holds of a key, in hexadecimal."""
    return hmac.digest(bytes.fromhex(pepper), key.encode(), "sha256").hex()


def _checksum(body: str) -> str:
    return b32encode(sha256(body.encode()).digest()[:_CHECK_BYTES]).decode().lower()


def _is_well_formed(key: str) -> bool:
    return _KEY.fullmatch(key) is not None and _checksum(key[3:43]) == key[43:]


class _Known(NamedTuple):
    """A key that was shown, and whose it is."""

    entry: KeyEntry
    principal: Principal


class KeyFile:
    """A key file that is followed: the last good content counts."""

    def __init__(self, path: Path, book: KeyBook, stamp: Stamp | None) -> None:
        self.book = book
        self._path = path
        self._stamp = stamp
        self._by_prefix = _by_prefix(book)
        self.known: dict[bytes, _Known] = {}  # by the key's SHA-256: keys that were found

    def look(self) -> None:
        """Read it again if it was changed; a broken one is told of once, and not used."""
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.book = read_key_file(self._path)
        except StartError as error:
            _log.warning("%s. The keys read before stay in force", error)
            return
        self._by_prefix = _by_prefix(self.book)
        self.known = {}

    def find(self, key: str) -> KeyEntry | None:
        """Return the entry of a key, compared in constant time."""
        given = digest_of(key, self.book.pepper)
        found = None
        for entry in self._by_prefix.get(prefix_of(key), ()):
            if hmac.compare_digest(entry.hmac, given):
                found = entry
        return found

    def weight_of(self, tenant: str) -> float | None:
        """Return the weight of a tenant's newest valid key, None if it has none."""
        entries = [e for e in self.book.keys if e.tenant == tenant and e.revoked is None]
        return max(entries, key=_created).weight if entries else None


class Keys:
    """Who may come in: those with a key of the settings or of the key file; without both, all."""

    def __init__(
        self,
        keys: Sequence[str] = (),
        *,
        file: KeyFile | None = None,
        time: Callable[[], int] = unix_time,
        trust_tenant_header: bool = False,
    ) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)
        self._file = file
        self._time = time
        self._trusts_all = trust_tenant_header

    @property
    def cache_secret(self) -> bytes | None:
        """What salts of the prefix cache derive from, if there is a key file."""
        return None if self._file is None else bytes.fromhex(self._file.book.cache_secret)

    def identify(self, head: RequestHead) -> Principal:
        """Return who sent a request. Raises AuthenticationFailed, which never quotes the key.

        Keys come as ``Authorization: Bearer`` or ``x-api-key``.
        """
        if not self._digests and self._file is None:
            return self._unnamed(ANYBODY, head)
        key = _given(head)
        digest = sha256(key).digest()
        if any([hmac.compare_digest(digest, own) for own in self._digests]):  # always all
            return self._unnamed(_API_KEY, head)
        if not key or self._file is None:
            raise AuthenticationFailed(
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
            )
        principal = self._principal(key.decode("latin-1"), digest, self._file)
        return _speaker(principal, head, self._file) if principal.trusted else principal

    def _unnamed(self, principal: Principal, head: RequestHead) -> Principal:
        """Somebody who is in no key file speaks for tenants only where the settings say so."""
        return _speaker(principal, head, self._file) if self._trusts_all else principal

    async def follow(self) -> None:
        """Look at the key file now and then, until cancelled."""
        while self._file is not None:
            await asyncio.sleep(LOOK_SECONDS)
            self._file.look()

    def _principal(self, key: str, digest: bytes, file: KeyFile) -> Principal:
        known = file.known.get(digest)
        if known is None:
            known = _known(key, file)
            if len(file.known) < MAX_KNOWN:
                file.known[digest] = known
        entry, principal = known
        if entry.revoked is not None:
            raise AuthenticationFailed("this API key was revoked; ask for another")
        if entry.expires is not None and entry.expires <= self._time():
            raise AuthenticationFailed("this API key has expired; ask for another")
        return principal


def _known(key: str, file: KeyFile) -> _Known:
    """Return what a key file has of a key. Raises AuthenticationFailed."""
    if not _is_well_formed(key):
        raise AuthenticationFailed(
            "this API key is mistyped or incomplete: copy it again, all 51 characters from 'hr-' on"
        )
    entry = file.find(key)
    if entry is None:
        raise AuthenticationFailed("this API key is not known here; ask for another")
    principal = Principal(
        name=entry.name,
        tenant=entry.tenant,
        highest=entry.highest,
        weight=entry.weight,
        trusted=entry.trusted,
        max_concurrent=entry.max_concurrent,
        tightest_ttft=entry.tightest_ttft_ms / 1000,
        tightest_itl=entry.tightest_itl_ms / 1000,
    )
    return _Known(entry, principal)


class KeySeats:
    """How many requests each key has open, for those that have a limit: all gateways together.

    ``elsewhere`` says how many there are at others.
    """

    def __init__(self, elsewhere: Callable[[str], int] = nobody_else) -> None:
        self._seats = Seats(elsewhere)

    def held(self) -> Mapping[str, int]:
        """Return what others are to count."""
        return self._seats.taken

    def take(self, principal: Principal) -> None:
        """Count a request. Raises RateLimited, and counts nothing, where it is one too many."""
        limit = principal.max_concurrent
        if limit and not self._seats.take(_seat(principal), limit):
            raise RateLimited(
                f"this API key may have {limit} requests open at a time; wait for one",
                retry_after=1.0,
            )

    def leave(self, principal: Principal) -> None:
        """A counted request has ended."""
        if principal.max_concurrent:
            self._seats.leave(_seat(principal))


def _seat(principal: Principal) -> str:
    return f"key/{principal.name}"


def open_keys(keys: Sequence[str], path: Path | None, *, trust_tenant_header: bool = False) -> Keys:
    """Return the keys of a gateway. Raises UsageError for a key file that cannot be used."""
    if path is None:
        return Keys(keys, trust_tenant_header=trust_tenant_header)
    stamp = stamp_of(path)  # first: a change while it is read is seen later
    file = KeyFile(path, read_key_file(path), stamp)
    return Keys(keys, file=file, trust_tenant_header=trust_tenant_header)


def _by_prefix(book: KeyBook) -> dict[str, list[KeyEntry]]:
    entries: dict[str, list[KeyEntry]] = {}
    for entry in book.keys:
        entries.setdefault(entry.prefix, []).append(entry)
    return entries


def _created(entry: KeyEntry) -> int:
    return entry.created


def _given(head: RequestHead) -> bytes:
    scheme, _, key = head.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        key = head.headers.get(b"x-api-key", b"")
    return key.strip()


def _speaker(principal: Principal, head: RequestHead, file: KeyFile | None) -> Principal:
    """Believe a trusted one for whom it speaks; a tenant with keys of its own has their weight."""
    tenant = head.headers.get(TENANT_FIELD)
    if tenant is None:
        return principal
    name = tenant.decode("latin-1")
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "x-headrace-tenant must be 1 to 64 letters, digits, '.', '_' or '-'",
            param="x-headrace-tenant",
        )
    weight = None if file is None else file.weight_of(name)
    return replace(principal, tenant=name, weight=principal.weight if weight is None else weight)
