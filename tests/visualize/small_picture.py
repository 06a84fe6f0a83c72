"""A small made-up picture, whose tokens' fates are known: four frames of 2 x 3 tokens in two segments."""

import numpy as np

from tango.visualize.picture import Panel, Picture

GRID, FRAMES, TOKENS = (2, 3), 4, 6
GREY = 200
# Flat indices: frame 0 holds 0-5, frame 1 6-11, frame 2 12-17, frame 3 18-23.
SALIENT, CONTEXT, ALONE, STATIC, DROPPED = 0, 7, 14, 5, 23


def panel(method="tango", ratio=0.25, **changes):
    """Token 0 is salient; 7 is merged of 1, 7, 8 and 13; 14 is merged of itself alone; 5 is static, kept for 5 and 11;
    23 and others are dropped.
    """
    roles = np.zeros(FRAMES * TOKENS, np.uint8)
    joined = np.full(FRAMES * TOKENS, -1, np.int64)
    static = np.zeros(FRAMES * TOKENS, bool)
    roles[[SALIENT, STATIC]] = 2
    roles[[CONTEXT, ALONE]] = 3
    joined[SALIENT], joined[[1, 7, 8, 13]], joined[ALONE], joined[[5, 11]] = SALIENT, CONTEXT, ALONE, STATIC
    static[[5, 11]] = True
    heat = np.zeros(FRAMES * TOKENS, np.uint8)
    heat[SALIENT] = 255
    values = {
        "method": method, "ratio": ratio, "roles": roles, "joined": joined[:, None], "static": static, "heat": heat,
        "segments": (2, 2), "before": FRAMES * TOKENS, "after": 4, "in_llm": 4,
    }  # fmt: skip
    return Panel(**values | changes)


def kept_only(method="topk", ratio=0.25, kept=(2, 9, 16, 23)):
    """A method that keeps tokens as they are, and goes by no saliency."""
    roles, joined = np.zeros(FRAMES * TOKENS, np.uint8), np.full((FRAMES * TOKENS, 1), -1)
    roles[list(kept)], joined[list(kept), 0] = 1, kept
    return panel(method, ratio, roles=roles, joined=joined, static=np.zeros_like(roles, bool), heat=None, segments=(4,))


def twice(**changes):
    """As panel(), but token 1 is also part of the token 14."""
    first = panel().joined
    joined = np.concatenate([first, np.full_like(first, -1)], 1)
    joined[1, 1] = ALONE
    return panel(**{"joined": joined} | changes)


def picture(panels=None, **changes):
    """Frames are plain grey, each a little darker than the one before."""
    frames = np.stack([np.full((40, 60, 3), GREY - 10 * frame, np.uint8) for frame in range(FRAMES)])
    panels = panels or ((panel(),),)
    values = {
        "video": "clip.mp4", "model": "some/model", "frames": frames, "times": (0.0, 1.0, 2.5, 3.0), "grid": GRID,
        "ratios": tuple(one.ratio for one in panels[0]), "panels": panels,
    }  # fmt: skip
    return Picture(**values | changes)
