"""Names of arms, classes and files are other people's text: make them inert where they are shown.

HTML needs nothing here but :func:`clean`: the template engine escapes.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Control, format (bidirectional overrides), surrogate, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What makes a spreadsheet evaluate a cell, with the full-width forms that some locales accept.
_FORMULA_START = tuple("=+-@＝＋－＠")


def clean(text: str) -> str:
    """Text on one line; what steers a terminal or reorders a line is replaced by U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(character) in _UNPRINTABLE else character
        for character in re.sub(r"\s", " ", text)
    )


def markdown_text(text: str) -> str:
    """``text`` that Markdown shows as it is: no HTML, links, emphasis or table breaks."""
    escaped = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", html.escape(clean(text), quote=False))
    return re.sub(r"(?i)(https?|ftp)://|www\.", _unlinked, escaped)


def csv_text(text: str) -> str:
    """``text`` that a spreadsheet does not take for a formula."""
    cleaned = clean(text)
    return "'" + cleaned if cleaned.lstrip().startswith(_FORMULA_START) else cleaned


def _unlinked(match: re.Match[str]) -> str:
    return match[0].replace(":", "&#58;").replace(".", "&#46;")
