"""URLs, which may hold credentials: ``user:password@``, or a query as presigned ones have.

They are used and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit


def is_url(text: str) -> bool:
    """Whether ``text`` names something on a server."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def shown(text: str) -> str:
    """A URL without credentials, and any other text as it is."""
    if not is_url(text):
        return text
    scheme, rest = text.split("://", 1)
    host, slash, path = rest.split("#")[0].split("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def with_path(url: str, change: Callable[[str], str]) -> str:
    """The URL with another path, and the same credentials."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=change(parts.path)))
