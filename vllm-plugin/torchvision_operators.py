"""Lets torchvision be imported whose compiled library does not fit the installed PyTorch.

PyPI's torchvision is built for CUDA, and its library does not load beside a PyTorch built for the CPU; importing it
then ends at `operator torchvision::nms does not exist`. Nothing that a video processor uses is in that library:
declaring its operators is enough. install.sh puts this file into an environment that needs it, with a .pth file that
imports it.
"""

import sys
from importlib.abc import MetaPathFinder


class DeclareOperators(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and finds no module itself."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            from torch.library import Library

            self.library = Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DeclareOperators())
