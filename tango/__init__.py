"""Tango: training-free pruning of video tokens between the vision encoder and the language model.

After Yin et al., "Tango: Taming Visual Signals for Efficient Video Large Language Models", arXiv 2604.09547.
"""

from tango.pruners.tango import Tango

__version__ = "0.1.0"
__all__ = ["Tango", "__version__"]
