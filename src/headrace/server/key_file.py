"""The key file: who may come in, on disk. JSON, mode 0600, replaced as a whole.

It holds no key, only HMAC-SHA-256(pepper, key): keys are random enough (200 bits) that nothing
slower is needed. Whoever can read the file can still count keys and tenants, and whoever can
write it can make keys: so nobody else may do either.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from headrace.errors import StartError, UsageError
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = 1
MAX_FILE_BYTES = 16 << 20
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"

KeyName = Annotated[str, Meta(pattern=NAME_PATTERN)]
Weight = Annotated[float, Meta(ge=0.01, le=100)]
_Secret = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_UnixTime = Annotated[int, Meta(ge=0)]


class KeyEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key. Times are Unix times; ``prefix`` is the key's beginning, for lists."""

    name: KeyName
    tenant: KeyName
    hmac: _Secret
    prefix: Annotated[str, Meta(min_length=4, max_length=16)]
    created: _UnixTime
    expires: _UnixTime | None = None
    revoked: _UnixTime | None = None
    weight: Weight = 1.0
    highest: PriorityClass = PriorityClass.STANDARD
    trusted: bool = False  # may speak for other tenants (x-headrace-tenant)
    tightest_ttft_ms: Annotated[float, Meta(ge=0, le=86_400_000)] = 0.0  # of its targets; 0: any
    tightest_itl_ms: Annotated[float, Meta(ge=0, le=86_400_000)] = 0.0
    max_concurrent: Annotated[int, Meta(ge=0, le=1 << 20)] = 0  # 0: no limit of its own


class KeyBook(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file's content. Prefix caches are salted with ``cache_secret``, keys with ``pepper``."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    pepper: _Secret
    cache_secret: _Secret
    keys: tuple[KeyEntry, ...] = ()


class Stamp(NamedTuple):
    """By what a changed file is known."""

    inode: int
    size: int
    modified_ns: int


def stamp_of(path: Path) -> Stamp | None:
    """Return the file's stamp, None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def read_key_file(path: Path) -> KeyBook:
    """Return the content. Raises UsageError with what is wrong and what to do."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            f"key file {path} does not exist; make it with "
            f"`headrace keys create NAME --file {path}`"
        ) from None
    except OSError as error:
        raise UsageError(f"key file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise UsageError(
            f"key file {path} is open to other users (mode {mode:04o}); run: chmod 600 {path}"
        )
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"key file {path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.json.decode(content, type=KeyBook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"key file {path} is broken: {error}; bring back a copy, or move it away and make new "
            f"keys with `headrace keys create`"
        ) from None


def write_key_file(path: Path, book: KeyBook) -> None:
    """Replace the file: readers see the old content or the new. Raises StartError."""
    path = path.resolve()  # a link stays a link
    content = msgspec.json.format(msgspec.json.encode(book), indent=1) + b"\n"
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it 0600
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StartError(f"cannot write key file {path}: {error.strerror}") from None


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keep other commands from changing the file meanwhile. Raises StartError if one does."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot write beside key file {path}: {error.strerror}") from None
    try:
        if not _locked(descriptor):
            raise StartError(f"another command is changing {path}; try again")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
