"""``headrace keys``: create, list and revoke API keys. A running server notices within a second."""

from __future__ import annotations

import difflib
import json
import secrets
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.clock import unix_time
from headrace.config import read_environment
from headrace.errors import UsageError
from headrace.server.key_file import (
    KeyBook,
    KeyEntry,
    changing,
    read_key_file,
    write_key_file,
)
from headrace.server.keys import DEFAULT_TENANT, KEY_BYTES, digest_of, new_key, prefix_of
from headrace.types import PriorityClass

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

FILE_NAME = "keys.json"
_SECRET_BYTES = 32
_SECONDS_PER_DAY = 86400
_HEADINGS = ("NAME", "PREFIX", "TENANT", "CLASS", "WEIGHT", "CREATED", "EXPIRES", "STATE")
_NAMES = "1 to 64 letters, digits, '.', '_' or '-', the first no sign"
_RANGES = {
    "name": _NAMES,
    "tenant": _NAMES,
    "weight": "0.01 to 100",
    "max_concurrent": "0 to 1048576",
    "tightest_ttft_ms": "0 (any) to 86400000",
    "tightest_itl_ms": "0 (any) to 86400000",
}
_FLAGS = (Flag("--file", "server.key_file", "FILE"),)
_EPILOG = """examples:
  headrace keys create alice
  headrace keys create nightly --tenant research --class batch --expires 90
  headrace keys list
  headrace keys revoke alice

The file is the setting server.key_file, else keys.json in the user's configuration directory.
`headrace serve --key-file FILE` lets in whoever has one of its keys."""


@dataclass(frozen=True, slots=True)
class Place:
    """The file, and what the outside world gives."""

    path: Path
    now: int  # Unix time

    def read(self) -> KeyBook:
        """Return the file's content; a new, empty one if there is no file."""
        if self.path.exists():
            return read_key_file(self.path)
        return KeyBook(
            pepper=secrets.token_hex(_SECRET_BYTES), cache_secret=secrets.token_hex(_SECRET_BYTES)
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace keys``."""
    parser.description = "Create, list and revoke API keys."
    parser.epilog = _EPILOG
    verbs = parser.add_subparsers(metavar="create|list|revoke", dest="verb", required=True)
    create = verbs.add_parser("create", help="make a key and print it, this once")
    create.add_argument("name", metavar="NAME", help="whose key it is, for people")
    create.add_argument(
        "--tenant", default=DEFAULT_TENANT, help="who shares a prefix cache with it"
    )
    create.add_argument(
        "--class",
        dest="highest",
        choices=[each.value for each in PriorityClass],
        default=PriorityClass.STANDARD.value,
        help="the highest class of its requests (%(default)s)",
    )
    create.add_argument("--weight", type=float, default=1.0, help="share beside others (1)")
    create.add_argument(
        "--trusted", action="store_true", help="may speak for tenants (x-headrace-tenant)"
    )
    create.add_argument("--expires", metavar="DAYS", type=float, help="end it after so many days")
    create.add_argument(
        "--max-concurrent", metavar="N", type=int, default=0, help="requests at a time; 0: any"
    )
    create.add_argument(
        "--tightest-ttft-ms", metavar="MS", type=float, default=0.0, help="of its targets; 0: any"
    )
    create.add_argument(
        "--tightest-itl-ms", metavar="MS", type=float, default=0.0, help="the same between tokens"
    )
    shown = verbs.add_parser("list", help="show all keys (nobody can show a key itself)")
    shown.add_argument("--json", action="store_true", help="print JSON")
    revoke = verbs.add_parser("revoke", help="let a key in no more")
    revoke.add_argument("name", metavar="NAME-or-PREFIX", help="as in the list")
    for verb in (create, shown, revoke):
        add_flags(verb, _FLAGS)


def main(args: argparse.Namespace) -> int:
    """Carry out one verb."""
    environment = read_environment()
    setting = load_settings(args, _FLAGS, environment).config.server.key_file
    path = Path(setting) if setting else environment.config_dir / FILE_NAME
    verbs: dict[str, Callable[[Place, argparse.Namespace], None]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
    }
    verbs[args.verb](Place(path, unix_time()), args)
    return 0


def _create(place: Place, args: argparse.Namespace) -> None:
    with changing(place.path):
        book = place.read()
        if any(entry.name == args.name and entry.revoked is None for entry in book.keys):
            raise UsageError(
                f"there is a key named {args.name} in {place.path}; choose another name, or "
                f"`headrace keys revoke {args.name}` first"
            )
        key = new_key(secrets.token_bytes(KEY_BYTES))
        entry = _entry(args, key, book, now=place.now)
        write_key_file(place.path, msgspec.structs.replace(book, keys=(*book.keys, entry)))
    print(key)
    print(
        f"This key of {entry.name} (tenant {entry.tenant}) is not shown again. "
        f"Only its digest is in {place.path}.",
        file=sys.stderr,
    )


def _entry(args: argparse.Namespace, key: str, book: KeyBook, *, now: int) -> KeyEntry:
    """Return the entry for a new key. Raises UsageError for a value out of range."""
    expires = None
    if args.expires is not None:
        if not 0 < args.expires <= 36500:
            raise UsageError(f"--expires {args.expires:g}: must be above 0 and up to 36500 days")
        expires = now + round(args.expires * _SECONDS_PER_DAY)
    entry = KeyEntry(
        name=args.name,
        tenant=args.tenant,
        hmac=digest_of(key, book.pepper),
        prefix=prefix_of(key),
        created=now,
        expires=expires,
        weight=args.weight,
        highest=PriorityClass(args.highest),
        trusted=args.trusted,
        max_concurrent=args.max_concurrent,
        tightest_ttft_ms=args.tightest_ttft_ms,
        tightest_itl_ms=args.tightest_itl_ms,
    )
    try:
        return msgspec.convert(msgspec.to_builtins(entry), KeyEntry)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].strip("`")
        wrong = msgspec.structs.asdict(entry)[field]
        raise UsageError(f"{field} is {wrong!r}; it must be {_RANGES[field]}") from None


def _list(place: Place, args: argparse.Namespace) -> None:
    entries = read_key_file(place.path).keys
    if args.json:
        rows = [{**_public(entry), "state": _state(entry, place.now)} for entry in entries]
        print(json.dumps(rows, indent=1))
        return
    table = [_HEADINGS, *(_row(entry, place.now) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(entry: KeyEntry, now: int) -> tuple[str, ...]:
    return (
        entry.name,
        entry.prefix,
        entry.tenant + (" (trusted)" if entry.trusted else ""),
        entry.highest.value,
        f"{entry.weight:g}",
        _date(entry.created),
        "never" if entry.expires is None else _date(entry.expires),
        _state(entry, now),
    )


def _revoke(place: Place, args: argparse.Namespace) -> None:
    with changing(place.path):
        book = read_key_file(place.path)
        entry = _find(book, args.name, place.path)
        revoked = msgspec.structs.replace(entry, revoked=place.now)
        keys = tuple(revoked if each is entry else each for each in book.keys)
        write_key_file(place.path, msgspec.structs.replace(book, keys=keys))
    print(f"revoked {entry.name} ({entry.prefix}...); running servers notice within a second")


def _find(book: KeyBook, wanted: str, path: Path) -> KeyEntry:
    """Return the valid key of that name or prefix. Raises UsageError."""
    valid = [entry for entry in book.keys if entry.revoked is None]
    found = [entry for entry in valid if wanted in (entry.name, entry.prefix)]
    if not found and len(wanted) > len("hr-"):
        found = [entry for entry in valid if entry.prefix.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{entry.name} ({entry.prefix})" for entry in found)
        raise UsageError(f"{wanted} may be {names}: give the name or the whole prefix")
    if any(wanted in (entry.name, entry.prefix) for entry in book.keys):
        raise UsageError(f"{wanted} is revoked already")
    near = difflib.get_close_matches(wanted, [entry.name for entry in valid])
    hint = f"did you mean {', '.join(near)}?" if near else "`headrace keys list` shows all"
    raise UsageError(f"no key in {path} has the name or prefix {wanted[:64]}; {hint}")


def _public(entry: KeyEntry) -> dict[str, object]:
    fields = msgspec.structs.asdict(entry)
    del fields["hmac"]
    return fields


def _state(entry: KeyEntry, now: int) -> str:
    if entry.revoked is not None:
        return f"revoked {_date(entry.revoked)}"
    return "expired" if entry.expires is not None and entry.expires <= now else "valid"


def _date(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).date().isoformat()
