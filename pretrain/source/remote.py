"""Files behind URLs: what they are now, and fetched whole or not at all.

Every message has the URL without credentials.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec

from runtime.errors import FULL_DISK, InputError
from runtime.files import sha256
from runtime.urls import shown

log = logging.getLogger("moco")

ATTEMPTS, PAUSE = 5, 1.0  # seconds before the second; before each later one twice as long
CONNECT, READ = 30, 60  # seconds without an answer, without a byte, until an attempt has failed
PACKAGES = {
    **dict.fromkeys(("http", "https"), "fsspec[http]"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs"), "adlfs"),
}
# ETag of HTTP and S3, generation of Google; else the time of the last change
_VERSIONS = ("ETag", "etag", "generation", "Last-Modified", "LastModified", "last_modified")
_WORTH_TRYING = (408, 425, 429)  # of the answers 4xx
_FOR_GOOD = ("Credentials", "NoSuchBucket")  # in what S3's clients raise
Result = TypeVar("Result")

# All connections of this process, and those of the process that it was forked from. If a forked
# process let go of the latter, it would take them from the epoll object that both share, and the
# other would wait for an answer until a timeout.
_held: set[Any] = set()


class MissingError(InputError):
    """There is no such file."""


class DeniedError(InputError):
    """The file is not for whoever asks."""


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL, in the state that counts for this run.

    ``size`` in bytes; ``version`` is the server's name of the state, "" where it gives none;
    ``sha256`` hexadecimal, "" where nobody knows it.
    """

    url: str = field(repr=False)
    size: int
    version: str
    sha256: str = ""

    @property
    def name(self) -> str:
        """The URL without credentials."""
        return shown(self.url)


def look(url: str) -> RemoteFile:
    """What is there now. MissingError or InputError where it cannot be had."""
    info = _tried(url, lambda system, path: system.info(path))
    if info.get("type") != "file":
        raise MissingError(f"there is no file {shown(url)!r}")
    if info.get("size") is None:
        raise InputError(
            f"the server does not say how many bytes {shown(url)!r} has (no Content-Length): what "
            "is cut short could not be told; use another server, or copy the shards to a disk"
        )
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(url, int(info["size"]), str(version))


def content(url: str) -> bytes:
    """All of a small file. MissingError or InputError where it cannot be had."""
    return _tried(url, lambda system, path: system.cat_file(path))


def download(file: RemoteFile, target: Path) -> None:
    """Write the file to ``target``, which is worth nothing where this raises.

    Size, version and SHA-256, where known, are as ``file`` says. InputError where they are not or
    the file cannot be had; after several attempts, where another may do.
    """

    def attempt(system: Any, path: str) -> None:
        try:
            system.get_file(path, str(target))
            size = target.stat().st_size
        except FileNotFoundError as error:
            if error.filename != str(target):
                raise  # not there on the server
            where = str(target.parent)
            raise InputError(
                f"{where!r} was cleared while {file.name!r} was fetched into it"
            ) from error
        _check_unchanged(file)
        if size != file.size:
            raise ConnectionError(f"{size} of {file.size} bytes arrived")
        if file.sha256 and sha256(target) != file.sha256:
            raise ConnectionError("the bytes that arrived do not have the SHA-256 of shards.json")

    _tried(file.url, attempt)


def _check_unchanged(file: RemoteFile) -> None:
    now = look(file.url)
    if (now.size, now.version) != (file.size, file.version):
        raise InputError(
            f"{file.name!r} has changed on the server since this run began: it had {file.size} "
            f"bytes, version {file.version or 'unknown'}; now {now.size}, "
            f"{now.version or 'unknown'}. Nothing of the new one was used"
        )


def _tried(url: str, action: Callable[[Any, str], Result]) -> Result:
    """``action`` with the file system and the path in it. InputError where it fails for good."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action(*_file_system(url))
        except InputError:
            raise
        except Exception as failure:  # each file system has its own
            error = _root(failure)
        cause = _cause(error, url)
        if isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 404:
            raise MissingError(f"there is no file {shown(url)!r} ({cause})")
        if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
            raise DeniedError(f"cannot read {shown(url)!r}: {cause}")
        if attempt == ATTEMPTS or not _worth_trying(error):
            times = f", {attempt} times" if attempt > 1 else ""
            raise InputError(f"cannot read {shown(url)!r}{times}: {cause}")
        pause = PAUSE * 2 ** (attempt - 1)
        log.warning("cannot read %s (%s): again in %.3g s", shown(url), cause, pause)
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _file_system(url: str) -> tuple[Any, str]:
    """A connection of this process, kept by fsspec, and the path in it."""
    scheme = url.split("://")[0].lower()
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            options["encoded"] = url.isascii() and " " not in url  # signatures count as they are
            # url_to_fs would take the :: of an IPv6 address for a chain of file systems
            system, path = fsspec.filesystem(scheme, **options), url
        else:
            system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        what = f"pip install '{package}'" if package else str(error)
        raise InputError(f"{shown(url)!r}: {scheme}:// needs a package: {what}") from None
    except ValueError as error:
        raise InputError(f"{shown(url)!r}: {_cause(error, url)}") from None
    _held.add(system)
    return system, path


def _root(error: Exception) -> Exception:
    """fsspec says of any failure to look at a HTTP file that it is not there."""
    cause = error.__cause__
    honest = isinstance(error, FileNotFoundError) and isinstance(cause, Exception)
    return cause if honest and isinstance(cause, Exception) else error


def _worth_trying(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if status is not None:
        return status >= 500 or status in _WORTH_TRYING
    for_good = (*FULL_DISK, errno.EROFS)
    if getattr(error, "errno", None) in for_good or isinstance(error, (ValueError, TypeError)):
        return False  # the latter: the URL itself is wrong
    about = f"{type(error).__name__} {error}"
    return not any(word in about for word in _FOR_GOOD)


def _cause(error: Exception, url: str) -> str:
    """Why, on one line and without anything secret that is in ``url``."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk of DATA.SHARD_CACHE"
    status = getattr(error, "status", None)
    if status is not None:
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    nothing = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    text = " ".join(str(error).split()) or nothing
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"]+", lambda match: shown(match[0]), text)
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return text[:300]


def _secrets(url: str) -> list[str]:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    values = [pair.partition("=")[2] for pair in parts.query.split("&")]
    found = {parts.query, user, *user.split(":"), *values}
    found |= {unquote(value) for value in found}
    return sorted((value for value in found if len(value) > 3), key=len, reverse=True)
