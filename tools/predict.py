#!/usr/bin/env python
"""Show what a trained detector finds in images: a picture of each, and one JSON file of all."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from runtime.errors import exit_code
from transfer.engines.select import ENGINES
from transfer.run.job import Job
from transfer.run.predict import Images, predict

EXAMPLE = """example:
  python tools/predict.py --config output/moco/config.yaml --weights output/moco/model_final.pth \\
      --input photos/ --output output/photos

DIR/pictures gets a picture of each image, DIR/detections.json the detections in COCO's results
format, with the names of images and classes. Exit code 2: wrong input, or an image is damaged (it
is named, and the others are done)."""


def main(args: argparse.Namespace) -> None:
    data = [args.test_data] if args.test_data else []
    job = Job(args.config, args.weights, args.overrides, test_data=data, engine=args.engine)
    predict(job, Images(args.input, args.output, args.score_threshold))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="config.yaml of the run, or its recipe"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="model_final.pth")
    parser.add_argument(
        "--input",
        required=True,
        metavar="IMAGES",
        help="a file, a folder (with its subfolders) or a quoted pattern such as 'photos/*.jpg'",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="least score to draw (default 0.5); the JSON file has all detections that the "
        "recipe's MODEL.ROI_HEADS.SCORE_THRESH_TEST lets through",
    )
    parser.add_argument(
        "--test-data",
        metavar="DATA",
        help="a data set with the detector's classes, where the weights lie outside their run "
        "folder: voc:DIR:SPLIT, coco:JSON:IMAGE_DIR or a built-in name",
    )
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="override recipe keys")
    arguments = parser.parse_intermixed_args()
    sys.exit(exit_code(lambda: main(arguments)))
