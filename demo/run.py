"""The whole chain on data that it draws itself: pretrain, convert, fine-tune, compare."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from convert.source import read_source
from demo.folder import MARK, DataRecipe, make
from pretrain.encoder import build_encoder, load_backbone
from pretrain.features import CentreCrops, embed, encoder_at_rest
from pretrain.knn import knn_accuracy
from pretrain.source.images import ImageFolder
from pretrain.trainer import FINAL

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("supervised", "moco")
ARCH = "resnet18w0.5x"
KNN_SIZE = 56  # pixels, as in pretraining
TRIALS = 3


def run_demo(output: Path) -> None:
    """Run what is not yet done below ``output``; print the table and where the report is.

    Every step is a command of the toolkit, printed as one would type it.
    """
    started = time.perf_counter()
    data = output / "data"
    if not (data / MARK).exists():
        make(data, DataRecipe())
    print(f"data: {data} (drawn by tools/make_demo_data.py)")
    for method in METHODS:
        _pretrain(method, data / "pretrain", output / method)
    _print_knn(output, data / "pretrain")
    arms = ["--arm", "random"]
    for method in METHODS:
        weights = output / f"{method}.pkl"
        _tool("convert_to_d2.py", str(output / method / FINAL), str(weights))
        arms += ["--arm", f"{method}={weights}"]
    _tool(
        "compare.py",
        *("--config", "demo/detector.yaml", "--engine", "embedded", *arms),
        *("--trials", str(TRIALS), "--base", "random"),
        *("--train-data", f"voc:{data / 'voc'}:train", "--test-data", f"voc:{data / 'voc'}:test"),
        *("OUTPUT_DIR", str(output / "comparison")),
    )
    print(f"report: {output / 'comparison' / 'report.html'}")
    print(f"the demo took {(time.perf_counter() - started) / 60:.1f} minutes")


def _pretrain(method: str, images: Path, run: Path) -> None:
    if (run / FINAL).exists():
        print(f"{run / FINAL} is there already")
        return
    resume = ["--resume"] if run.exists() else []
    config = f"demo/{method}.yaml"
    options = ("DATA.ROOT", str(images), "OUTPUT_DIR", str(run))
    _tool("pretrain.py", "--config", config, *resume, *options)


def _tool(name: str, *arguments: str) -> None:
    command = [f"tools/{name}", *arguments]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        raise SystemExit(code)


def _print_knn(output: Path, images: Path) -> None:
    """The control: can these data and this trainer teach an encoder anything?

    kNN accuracy over the class folders, odd images against even ones, which all were pretrained
    on. The supervised counterpart must be far above random weights, or the comparison means
    nothing.
    """
    folder = ImageFolder.scan(images)
    labels = torch.tensor(folder.labels())
    print("\nkNN accuracy on the pretraining images (odd ones, from the even ones):")
    for name in ("random", *METHODS):
        torch.manual_seed(0)
        encoder = build_encoder(ARCH, 1)
        if name != "random":
            path = output / name / FINAL
            load_backbone(encoder, read_source(path).backbone, str(path))
        found = embed(encoder_at_rest(encoder), CentreCrops(folder, KNN_SIZE))
        accuracy = knn_accuracy(found[::2], labels[::2], found[1::2], labels[1::2])
        print(f"  {name:12s} {accuracy:5.1f} %")
