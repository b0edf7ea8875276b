from __future__ import annotations

import csv
import io

import pytest
from compare_synthetic import fair_results, make_results
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from transfer.compare.statistics import compare_arms
from transfer.compare.table import csv_table, markdown, signed, terminal_table
from transfer.compare.untrusted import clean, csv_text, markdown_text

PAYLOADS = [
    "<script>alert(1)</script>",
    '=HYPERLINK("http://evil.example","x")',
    "a|b",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "`code` **bold** __b__ ~~s~~ $x$",
    "http://evil.example www.evil.example",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "line\nbreak\r\n# title",
    "\x1b[31mred\x07",
    "\u202egnp.exe",
    "＝1+1",
    "\t=1+1",
    "&lt;b&gt;",
    "back\\slash\\|",
    "\udcff",
]


def rendered(text: str) -> tuple[list[str], str]:
    """Token types of a Markdown text as GitHub reads it, and the text that it shows."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    flat = [child for token in tokens for child in (token, *(token.children or []))]
    shown = "".join(t.content for t in flat if t.type in ("text", "text_special"))
    return [token.type for token in flat], shown


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markdown_shows_payloads_as_they_are(payload: str):
    types, shown = rendered(f"x {markdown_text(payload)} y")
    assert set(types) <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    assert shown == " ".join(f"x {clean(payload)} y".split(" "))
    assert "://" not in markdown_text(payload)


@given(st.text())
def test_any_text_is_one_inert_markdown_line(text: str):
    types, _ = rendered(f"| h |\n| --- |\n| x{markdown_text(text)} |\n")
    assert types.count("td_open") == types.count("tr_open") - 1 == 1
    forbidden = {"html_inline", "html_block", "link_open", "image", "code_inline", "em_open"}
    assert not forbidden & set(types)


@given(st.one_of(st.text(), st.text("=+-@ \t\n'|a")))
def test_no_text_is_a_formula_or_breaks_a_line(text: str):
    cell = csv_text(text)
    assert not cell.strip().startswith(("=", "+", "-", "@"))
    assert cell.encode("utf-8").decode("utf-8").splitlines() in ([cell], [])


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb\r\nc", "a b  c"), ("\x1b[31m", "\ufffd[31m"), ("\u202ex\udcff", "\ufffdx\ufffd")],
)
def test_what_is_unprintable_stays_visible(text: str, shown: str):
    assert clean(text) == shown


@pytest.mark.parametrize("payload", PAYLOADS)
def test_tables_survive_hostile_arm_and_class_names(payload: str):
    metrics = {"bbox": {"AP": 50.0, f"AP-{payload}": 40.0, payload: -1.0}}
    runs = [make_results("base", 1, 0.0), make_results(payload, 1, 0.0, metrics=metrics)]
    rows = compare_arms(runs, "base")

    lines = list(csv.reader(io.StringIO(csv_table(rows, "base"))))
    assert {len(line) for line in lines} == {11}
    for line in lines[1:]:
        for cell in (*line[:3], line[6]):
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
            assert clean(cell) == cell

    types, _ = rendered(markdown(rows, "base", [payload], payload, [payload]))
    assert types.count("th_open") == 2 + 4 + 1 + 4  # arm, seeds, four metrics; arm, four metrics
    assert types.count("td_open") == 2 * 6 + 5
    assert not {"html_inline", "html_block", "link_open", "image", "code_inline"} & set(types)

    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(terminal_table(rows, payload))
    text = console.export_text()
    assert "\x1b" not in text
    assert clean(payload).split()[0] in text


def test_csv_holds_the_numbers_in_full():
    lines = list(
        csv.DictReader(io.StringIO(csv_table(compare_arms(fair_results(), "moco"), "moco")))
    )
    assert len(lines) == 9
    first = lines[0]
    assert (first["arm"], first["task"], first["metric"], first["n"]) == (
        "random",
        "bbox",
        "AP",
        "3",
    )
    assert float(first["mean"]) == pytest.approx((33.5 + 34.1 + 33.8) / 3, rel=1e-15)
    assert float(first["difference"]) < -22  # a negative number stays a number
    assert lines[-1]["difference"] == lines[-1]["ci95_low"] == "n/a"  # the base itself


def test_markdown_of_a_fair_comparison():
    text = markdown(compare_arms(fair_results(), "supervised"), "supervised", ["Head."], "VOC", [])
    assert "| arm | seeds | bbox AP | bbox AP50 | bbox AP75 |" in text
    assert "| moco | 1, 2, 3 | 56.00 ± 0.38 | 81.00 ± 0.38 | 61.00 ± 0.38 |" in text
    assert r"| moco | +2.43 \[+2.12, +2.75\] |" in text
    assert "Notes" not in text


def test_one_seed_reads_not_available():
    runs = [run for run in fair_results() if run["seed"] == 1]
    text = markdown(compare_arms(runs, "supervised"), "supervised", [], "VOC", ["A note."])
    assert "| moco | 1 | 55.60 ± n/a |" in text
    assert r"| moco | +2.30 \[n/a\] |" in text
    assert text.endswith("- A note.\n")


def test_signed_has_no_negative_zero():
    assert [signed(x) for x in (-0.001, 0.0, 1.005001, -2.0)] == [
        "+0.00",
        "+0.00",
        "+1.01",
        "-2.00",
    ]
