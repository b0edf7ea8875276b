"""Writes docs/parity.md after a run of the parity tests (PARITY_PAGE names the file)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from parity_page import PAGE


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    target = os.environ.get("PARITY_PAGE")
    if not target or not PAGE.tables:
        return
    counts = {
        what: len(terminalreporter.stats.get(what, ())) for what in ("passed", "failed", "skipped")
    }
    outcome = ", ".join(f"{count} tests {what}" for what, count in counts.items() if count)
    Path(target).write_text(PAGE.markdown(f"{outcome}."), encoding="utf-8")
    terminalreporter.write_line(f"wrote {target}")
