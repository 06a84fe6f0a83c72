"""Qwen3.5: Qwen3-VL's vision tower and prompt without deepstack, and a decoder that is mostly linear attention.

A video stands in the prompt as in Qwen3-VL, a span of placeholders for each frame after the frame's time as text, and
kept tokens keep their M-RoPE positions. Three of four layers of the decoder are no attention but a gated delta rule: a
state that each token decays and writes to, behind a convolution over the last few tokens. Neither knows of positions.
A token that is dropped before the decoder is in none of them: it neither decays the state nor writes to it, and the
tokens before and after it are neighbours in the convolution.
"""

from tango.models.qwen_vl import QwenVL


class Qwen3_5(QwenVL):
    """Qwen3_5ForConditionalGeneration and its mixture-of-experts sister, Qwen3_5MoeForConditionalGeneration."""

    title = "Qwen3.5"


FAMILY = Qwen3_5
