from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compare_synthetic import fair_results, make_results, write_run
from PIL import Image

import transfer.compare.summary
from runtime.errors import InputError
from transfer.compare import summarise
from transfer.compare.figures import ap_per_arm, learning_curves, mean_curve
from transfer.compare.runs import read_curves, read_detections

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def dataset(tmp_path: Path) -> SimpleNamespace:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), "gray").save(path)
    box = {"bbox": [4, 4, 30, 40], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    record = {"file_name": str(path), "image_id": 1, "annotations": [box]}
    return SimpleNamespace(records=[record], classes=("cat", "dog"))


def write_runs(output: Path, runs: list[dict[str, Any]]) -> None:
    for run in runs:
        losses = [{"iteration": at, "total_loss": 2.0 - at / 100} for at in (19, 39, 59)]
        aps = [{"iteration": at, "bbox/AP": 10.0 + at} for at in (19, 59)]
        box = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 30], "score": 0.8}
        folder = output / run["arm"] / f"seed{run['seed']}"
        write_run(folder, run, metrics=losses + aps, detections=[box])


def test_report_is_complete_and_loads_nothing(tmp_path: Path, dataset: Any, capsys: Any):
    write_runs(tmp_path, fair_results())
    summarise(fair_results(), "supervised", tmp_path, dataset, "tools/compare.py --trials 3")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("a")
    images = page.all("img")
    assert len(images) == 3 + 1 + 3  # AP, loss and AP curves; ground truth and three arms
    for image in images:
        assert re.match("data:image/(png|jpeg);base64,", str(image["src"]))
        assert image["alt"]
    text = " ".join(" ".join(page.text).split())
    for part in (
        "moco is better than supervised: +2.43 box AP (95 % interval +2.12 to +2.75",
        "Nothing found that makes the arms differ",
        "56.00 ± 0.38 +2.43 [+2.12, +2.75]",
        "VOC AP (11-point), mean over IoU 0.50:0.95",
        "none: random initialisation",
        "weights/moco.pkl",
        "3ad7555734cf277fda008cf2572416277cd14286a64ff1b79e4a5b68f9f2f0c1",
        "embedded (detectron2 is not installed)",
        "schedule: iterations 24000",
        "NVIDIA H100 80GB",
        "1:02:03",
        "12,346 MB",
        "1 with score ≥ 0.5",
        "tools/compare.py --trials 3",
    ):
        assert part in text
    printed = capsys.readouterr().out
    assert "+2.43 [+2.12, +2.75]" in printed
    assert "better than supervised" in printed


def test_all_files_are_there_and_repeatable(tmp_path: Path, dataset: Any):
    write_runs(tmp_path, fair_results())
    summarise(fair_results(), "supervised", tmp_path, dataset)
    names = ["plots/bbox_AP.png", "plots/bbox_AP_curve.png", "plots/total_loss_curve.png"]
    names += ["report.html", "table.csv", "table.md"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = [path for path in files if "seed" not in str(path) and path.name != "photo.png"]
    assert sorted(str(path.relative_to(tmp_path)) for path in written) == names
    before = [path.read_bytes() for path in written]
    summarise(fair_results(), "supervised", tmp_path, dataset)
    assert [path.read_bytes() for path in written] == before


PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://evil.example")',
    "a|b",
    "../../../etc/passwd",
    "$\\frac{x$",
    "_hidden",
    "\x1b[31m\u202e\udcff",
    "{{ 7 * 7 }}",
    "[bold]x[/nothing]",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_come_out_inert(tmp_path: Path, dataset: Any, payload: str, capsys: Any):
    """The same text stands everywhere that other people's text can stand."""
    dataset.classes = (payload, payload)
    conventions = {payload: payload}
    module = {"module": payload, "loaded": 1, "initialised": 1, "norm": payload}
    changes: dict[str, Any] = {
        "engine_reason": payload,
        "recipe": payload,
        "weights": {"path": payload, "sha256": payload, "conventions": conventions},
        "load_report": {"modules": [{**module, "trainable": 1, "frozen": 0}]},
        "deviations": [payload],
        "schedule": {payload: payload},
        "dataset": {"train": [payload], "test": [payload], "classes": [payload]},
        "metric": payload,
        "metrics": {"bbox": {"AP": 50.0, f"AP-{payload}": 1.0}, payload: {payload: 2.0}},
        "hardware": {payload: payload},
        "versions": {payload: payload},
        "finished": payload,
    }
    runs = [make_results("base", 1, 0.0, **changes), make_results(payload, 1, 0.0, **changes)]
    write_runs(tmp_path, runs[:1])
    summarise(runs, "base", tmp_path, dataset, payload)

    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "a", "link", "iframe", "object", "svg"} & {tag for tag, _ in page.tags}
    attributes = {name for _, of_tag in page.tags for name in of_tag}
    assert attributes <= {
        *("lang", "charset", "http-equiv", "content", "name"),
        *("class", "style", "scope", "src", "alt", "tabindex"),
    }
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", source)
    if payload.isprintable():
        assert page.text.count(payload) > 5  # shown as it is, not dropped
    assert "\x1b" not in capsys.readouterr().out


def test_a_mismatch_leaves_no_verdict(tmp_path: Path):
    runs = fair_results()
    runs[2]["engine"] = "detectron2"
    write_runs(tmp_path, runs)
    summarise(runs, "supervised", tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "better than" not in source.replace("weights are better", "")
    assert 'class="difference shown"' not in source
    assert "<b>Not comparable:</b> The engine differs" in source
    assert "The engine differs" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_what_is_missing_is_said(tmp_path: Path, dataset: Any):
    write_runs(tmp_path, fair_results())
    (tmp_path / "moco/seed1/inference/coco_instances_results.json").unlink()
    (tmp_path / "moco/seed2/metrics.json").unlink()
    dataset.records.append({**dataset.records[0], "file_name": "absent.png"})
    summarise(fair_results(), "supervised", tmp_path, dataset)
    text = (tmp_path / "table.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Arm moco seed 1 saved no detections to draw." in text
    assert "seed2/metrics.json is missing" in text
    assert "No picture of absent.png" in text


def test_failure_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_runs(tmp_path, fair_results())

    def fail(content: object) -> str:
        raise RuntimeError

    monkeypatch.setattr(transfer.compare.summary, "render", fail)
    with pytest.raises(RuntimeError):
        summarise(fair_results(), "supervised", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moco", "random", "supervised"]


@pytest.mark.parametrize(
    ("runs", "base", "reason"),
    [
        ([], "moco", "no finished runs"),
        (fair_results(), "mocco", "choose one of random, supervised, moco"),
        ([*fair_results(), make_results("moco", 2, 1.0)], "moco", "seed 2 twice"),
        ([{**make_results("moco", 1, 1.0), "arm": None}], "moco", "run 1: entry 'arm'"),
        ([make_results("moco", 1, 1.0, metrics={})], "moco", "evaluate"),
    ],
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, runs, base: str, reason: str):
    with pytest.raises(InputError, match=reason):
        summarise(runs, base, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_curves_take_the_later_line_and_report_torn_ones(tmp_path: Path):
    (tmp_path / "metrics.json").write_text(
        '{"iteration": 19, "total_loss": 3.0, "lr": 0.1}\n'
        '{"iteration": 39, "total_loss": 9.0}\n'
        '{"iteration": 59, "total_l'
        '\n{"iteration": 39, "total_loss": 2.0, "bbox/AP": 5}\n'
        '{"iteration": 59, "total_loss": NaN}\n[1]\n'
    )
    notes: list[str] = []
    curves = read_curves(tmp_path, ["total_loss", "bbox/AP", "segm/AP"], notes)
    assert curves == {"total_loss": {19: 3.0, 39: 2.0}, "bbox/AP": {39: 5.0}, "segm/AP": {}}
    assert len(notes) == 1
    assert "2 unreadable line(s)" in notes[0]


def test_mean_curve_by_hand():
    assert mean_curve([{20: 1.0, 40: 2.0, 60: 7.0}, {40: 4.0, 20: 2.0}]) == {20: 1.5, 40: 3.0}
    assert mean_curve([]) == {}


def test_detections_are_ordered_by_score_and_damage_is_named(tmp_path: Path):
    assert read_detections(tmp_path) is None
    write_run(
        tmp_path / "run",
        {},
        detections=[{"image_id": i, "score": s} for i, s in ((1, 0.2), (2, 0.3), (1, 0.9))],
    )
    found = read_detections(tmp_path / "run")
    assert found is not None
    assert [entry["score"] for entry in found["1"]] == [0.9, 0.2]
    write_run(tmp_path / "bad", {}, detections=[{"score": 1}])
    with pytest.raises(InputError, match="not a list of detections"):
        read_detections(tmp_path / "bad")


@pytest.mark.parametrize("arm", ["$\\frac{x$", "_hidden", "\x1b"])
def test_figures_take_any_name(arm: str):
    """``$`` is no formula, and ``_`` does not hide an arm from the legend."""
    png = learning_curves({arm: [{1: 1.0, 2: 2.0}]}, arm)
    assert png != learning_curves({f"{arm}x": [{1: 1.0, 2: 2.0}]}, arm)
    assert ap_per_arm({arm: {1: 2.0}}, (arm, arm)).startswith(b"\x89PNG")


def test_arm_names_never_lead_out_of_the_folder(tmp_path: Path, dataset: Any):
    output = tmp_path / "out"
    write_runs(output, [make_results("base", 1, 50.0)])
    write_runs(tmp_path, [make_results("elsewhere", 1, 60.0)])
    runs = [make_results("base", 1, 50.0), make_results("../elsewhere", 1, 60.0)]
    summarise(runs, "base", output, dataset)
    text = (output / "table.md").read_text(encoding="utf-8").replace("\\", "")
    assert "No learning curve for arm ../elsewhere: not a folder name." in text
    assert "Arm ../elsewhere seed 1 saved no detections to draw." in text


def test_figures_show_every_arm_in_its_colour():
    values = {"random": {1: 33.0, 2: 34.0}, "moco": {1: 55.0}}
    curves = {"random": [{1: 1.0, 2: 2.0}], "moco": [{1: 2.0, 2: 1.0}]}
    for png in (ap_per_arm(values, ("bbox", "AP")), learning_curves(curves, "loss")):
        image = Image.open(io.BytesIO(png)).convert("RGB")
        assert image.width == 6 * 170
        colours = {colour for _, colour in image.getcolors(1 << 24)}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
