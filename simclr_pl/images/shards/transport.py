"""Bytes of shards, by range, from a disk or any address that fsspec knows; with retries."""

import base64
import os
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.passwords import password_for

TRIES = 6
"""Times that a request is made before a run ends."""

PAUSE_S = 0.5
"""Pause before the second try; each later one is twice as long."""

TIMEOUT_S = 60.0
"""Longest time of one request over HTTP."""

T = TypeVar("T")

_systems: dict[tuple[int, str, str], Any] = {}


class Shard(NamedTuple):
    """A tar file as it is now.

    Attributes:
        address: its absolute path, or an address.
        size: in bytes.
        stamp: changes when the file does: the time of a file on a disk, or a server's ETag.
    """

    address: str
    size: int
    stamp: str


class RefusedError(Exception):
    """An answer that another try would not change."""


def is_remote(address: str) -> bool:
    """Whether that is an address, and no path on a disk."""
    return "://" in address


def system_of(address: str) -> Any:
    """The file system of an address, opened in this process: connections don't survive a fork.

    Raises:
        UserError: an unknown kind of address, or one whose package is missing.
    """
    protocol, server = address.split("://", 1)[0], urlsplit(address).netloc
    key = os.getpid(), protocol, server if protocol in ("http", "https") else ""
    if key not in _systems:
        import fsspec

        try:
            kind = fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            raise UserError(
                f"{address}: there are no addresses that begin {protocol}://"
            ) from error
        except ImportError as error:
            remedy = "pip install 'simclr_pl[s3]'" if protocol in ("s3", "s3a") else str(error)
            raise UserError(f"{address} needs a package that is not here: {remedy}") from error
        how: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if protocol in ("http", "https"):
            how["client_kwargs"] = _session(urlsplit(address))
        try:
            _systems[key] = kind(**how)
        except Exception as error:  # each kind wants arguments of its own
            raise UserError(
                f"{address}: addresses of {protocol}:// cannot be opened ({in_one_line(error)}): "
                "give the shards at https:// or s3://, or on a disk"
            ) from error
    return _systems[key]


def _session(address: SplitResult) -> dict[str, Any]:
    """How HTTP asks a server: with the password of the netrc file, through the user's proxy.

    aiohttp's `trust_env` would look for both anew for each request.
    """
    import aiohttp

    how: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total=TIMEOUT_S)}
    host = address.hostname or ""
    if not proxy_bypass(host):
        how["proxy"] = getproxies().get(address.scheme)
    if "@" not in address.netloc and (known := password_for(host)):
        coded = base64.b64encode(":".join(known).encode()).decode()
        how["headers"] = {"Authorization": f"Basic {coded}"}
    return how


def path_in(address: str) -> str:
    """What the file system of an address calls it."""
    from fsspec.core import strip_protocol

    return str(strip_protocol(address))


def attempt(address: str, what: str, call: Callable[[], T]) -> T:
    """What a call returns, which is tried `TRIES` times with growing pauses.

    Args:
        address: for the error.
        what: the address cannot be, for the error: read, listed.
        call: raises anything where it fails.

    Raises:
        UserError: it failed each time, or for good.
    """
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # each library raises errors of its own
            said = _for_good(error)
            if said:
                raise UserError(f"{address} cannot be {what}: {said}") from error
            if tried == TRIES:
                raise UserError(
                    f"{address} cannot be {what}: {TRIES} tries failed, the last one with "
                    f"{in_one_line(_cause(error))}; go on with --resume when the server is well"
                ) from error
        # (Ranks and workers that failed together don't come back together.)
        time.sleep(PAUSE_S * 2 ** (tried - 1) * (0.75 + random.random() / 2))
    raise AssertionError("unreachable")


def _cause(error: Exception) -> Exception:
    """What went wrong: fsspec calls every failure to learn a file's size a FileNotFoundError."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _for_good(error: Exception) -> str:
    """Why no other try would help; empty where one may."""
    if isinstance(error, RefusedError):
        return str(error)
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(answer := getattr(cause, "response", None), dict):  # botocore's
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    unknown = any(word in repr(cause) for word in ("Credential", "ProfileNotFound"))
    if unknown or status in (401, 403) or isinstance(error, PermissionError):
        return (
            "the server wants to know who asks: give credentials (of HTTP in ~/.netrc, of S3 in "
            "AWS_PROFILE, say)"
        )
    if isinstance(cause, FileNotFoundError) or status in (404, 410):
        return "there is nothing at this address"
    if status == 416:
        return "it is shorter than its index says: it has changed, start again"
    return ""


def look(address: str) -> Shard:
    """A shard's size and stamp.

    Raises:
        UserError: it is not there, or cannot be reached.
    """
    if not is_remote(address):
        try:
            about = os.stat(address)  # noqa: PTH116 - of many
        except OSError as error:
            raise UserError(f"{address} cannot be read ({error.strerror})") from error
        return Shard(address, about.st_size, str(about.st_mtime_ns))
    found = attempt(address, "read", lambda: system_of(address).info(path_in(address)))
    if found.get("size") is None:
        raise UserError(f"{address} cannot be read: its server does not say how long it is")
    marks = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "created")
    stamp = next((str(found[mark]) for mark in marks if found.get(mark)), "")
    return Shard(address, int(found["size"]), stamp)


def fetch(shard: Shard, start: int, size: int) -> bytes:
    """Bytes of a shard at an address.

    Raises:
        UserError: they cannot be read.
    """

    def once() -> bytes:
        system = system_of(shard.address)
        got: bytes = system.cat_file(path_in(shard.address), start=start, end=start + size)
        if len(got) > size:
            raise RefusedError("its server gives whole files alone, and no ranges of them")
        if len(got) < size:
            raise OSError(f"{len(got)} bytes of {size}")
        return got

    return attempt(shard.address, "read", once)
