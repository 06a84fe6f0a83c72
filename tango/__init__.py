"""Tango: training-free pruning of video tokens between the vision encoder and the language model.

After Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tango.pruners.tango import Tango

__version__ = "0.2.0"
__all__ = ["Tango", "__version__"]


def __getattr__(name: str) -> Any:
    """`tango.Tango`, imported when asked for: PyTorch comes with it, and the command `tango --help` can do without."""
    if name == "Tango":
        from tango.pruners.tango import Tango

        return Tango
    raise AttributeError(f"module 'tango' has no attribute {name!r}")
