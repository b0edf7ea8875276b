"""Detectron2's own code for Cityscapes imports cityscapesscripts by a name of its makers' inside
code base; importing this module gives that name a meaning, so that users' code runs.

Our reader and evaluator of Cityscapes need none of it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType

PACKAGES = ("deeplearning", "deeplearning.projects", "deeplearning.projects.cityscapesApi")


def register() -> None:
    """``deeplearning.projects.cityscapesApi.cityscapesscripts`` is the installed package.

    Nothing happens where it is not installed, or where a package ``deeplearning`` is.
    """
    scripts = importlib.util.find_spec("cityscapesscripts")
    if scripts is None or not scripts.origin or importlib.util.find_spec("deeplearning"):
        return
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = []
        package.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        sys.modules[name] = package
    package.__path__ = [os.path.dirname(os.path.dirname(scripts.origin))]


register()
