"""How much may be dropped: a pruned model's answers to one's own questions against the unpruned model's, no labels."""

from tango.calibrate.ask import Asked, Clip, compare
from tango.calibrate.choose import Way, best, settings_file, smallest, summaries

__all__ = ["Asked", "Clip", "Way", "best", "compare", "settings_file", "smallest", "summaries"]
