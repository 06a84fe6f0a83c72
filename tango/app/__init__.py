"""The app in a browser: a video, a question, a method and a ratio; the answers without and with pruning side by side.

with served(load("checkpoints/tango-tiny"), frames=8) as address:
    ...
"""

from tango.app.serving import served
from tango.app.visitors import Limits

__all__ = ["Limits", "served"]
