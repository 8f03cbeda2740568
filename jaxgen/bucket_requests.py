"""Requests to buckets through fsspec: repeated, never silent for long, refused in one line."""

from __future__ import annotations

import importlib
import logging
import os
import random
import time
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from jaxgen import terminal
from jaxgen.errors import BusyError, ConfigError

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # what each needs; the extra is called like the scheme
TRIES = 4  # of a request; gcsfs and s3fs repeat it themselves, too
PAUSE = 0.5  # seconds before the second, on average; doubled for each further one
PATIENCE = 30.0  # seconds after which a request is not repeated
CONNECT, SILENCE = 5, 15  # seconds for a connection, and for its next bytes; s3fs's own
UPLOADS = ("put_file", "pipe_file")  # which take as long as they are large


def request(path: object, scheme: str, method: str, *arguments: Any, **more: Any) -> Any:
    """Return what a method of fsspec does; repeated, with growing random pauses, where it may help.

    path: what messages name. A request that lasts is told of on standard error. Raises OSErrors
    that say something about the object, else BusyError.
    """
    start = time.monotonic()

    def tell(seconds: float) -> None:
        terminal.say(f"{path}: no answer for {seconds:.0f} s")

    slow = method in UPLOADS
    with nullcontext() if slow else terminal.ticking(tell, terminal=False):
        for number in range(1, TRIES + 1):
            try:
                return getattr(_file_system(scheme), method)(*arguments, **more)
            except (FileNotFoundError, FileExistsError, IsADirectoryError, ConfigError):
                raise
            except Exception as error:
                line = one_line(error)
                if not _is_transient(error):
                    raise BusyError(f"{path}: {_reason(error, scheme)} ({line})") from error
                if number == TRIES or time.monotonic() - start > PATIENCE:
                    raise BusyError(
                        f"{path}: no answer after {number} attempts ({line}); start again when the "
                        f"network is back"
                    ) from error
            time.sleep(PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - a pause
    raise AssertionError


def one_line(error: Exception) -> str:
    """Return what an error says, short and on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, PermissionError | ValueError | TypeError | AttributeError):
        return False
    code = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
    refused = code.startswith("4") and code not in ("408", "429")
    return not (refused or any(word in type(error).__name__ for word in ("Credentials", "Profile"))
                or "Forbidden" in str(error))  # fmt: skip


def _reason(error: Exception, scheme: str) -> str:
    log_in = {
        "gs": "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
        "s3": "`aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    }
    words = f"{type(error).__name__} {error}"
    signs = ("Credential", "Permission", "Forbidden", "401", "403", "Access", "denied")
    if any(word in words for word in signs):
        return f"access is refused; {log_in[scheme]}, of an account that may use it"
    return "the bucket refuses"


@lru_cache
def _module(scheme: str) -> Any:
    # It asks each bucket what kind it is, by gRPC, for a kind that is used by few.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # A traceback for each attempt; what it comes to is raised.
    logging.getLogger(SCHEMES[scheme]).setLevel(logging.CRITICAL)
    try:
        return importlib.import_module(SCHEMES[scheme])
    except ImportError as error:
        raise ConfigError(
            f'{scheme}:// needs {SCHEMES[scheme]}: pip install "jaxgen[{scheme}]"'
        ) from error


def _file_system(scheme: str) -> Any:
    # fsspec keeps one for each process and set of arguments, and makes others after a fork. What
    # other processes write must be seen: no listing is remembered.
    module = _module(scheme)
    if scheme == "s3":
        return module.S3FileSystem(
            use_listings_cache=False,
            config_kwargs={"retries": {"total_max_attempts": 1}},  # s3fs repeats it itself
        )
    client = importlib.import_module("aiohttp")  # of gcsfs
    timeout = client.ClientTimeout(sock_connect=CONNECT, sock_read=SILENCE)
    return module.GCSFileSystem(use_listings_cache=False, requests_timeout=timeout)
