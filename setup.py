from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="moco-transfer",
    version="0.1.0",
    description="Momentum Contrast: pretrain, convert, fine-tune detectors and compare",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(
        include=[
            f"{name}{suffix}"
            for name in ("runtime", "pretrain", "convert", "transfer", "demo")
            for suffix in ("", ".*")
        ]
    ),
    package_data={"transfer": ["*.yaml", "compare/*.j2"]},
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "numpy>=1.26",
        "Pillow>=10.3",
        "PyYAML>=6.0",
        "fvcore>=0.1.5.post20221221",
        "pycocotools>=2.0.8",
        "faster-coco-eval>=1.6.5",
        "safetensors>=0.4.5",
        "opencv-python-headless>=4.9",
        "numba>=0.61",
        "simplejpeg>=1.8",
        "matplotlib>=3.8",
        "Jinja2>=3.1.4",
        "rich>=13.7",
        "scipy>=1.11",
        "fsspec>=2024.6",
    ],
    extras_require={
        "logging": ["tensorboard>=2.16"],
        "streaming": ["fsspec[http]>=2024.6", "webdataset>=1.0"],
        "slurm": ["submitit>=1.5"],
        "cityscapes": ["cityscapesscripts>=2.2", "shapely>=2.0"],
        "test": [
            "pytest>=8",
            "fsspec[http]>=2024.6",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "lvis>=0.5.3",
            "ruff>=0.8",
            "mypy>=1.13",
            "types-PyYAML>=6.0",
            "cityscapesscripts>=2.2",
            "shapely>=2.0",
        ],
    },
)
