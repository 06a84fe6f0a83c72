"""What a chat's response tells of its videos, where vLLM is asked for it (--enable-prompt-tokens-details): beside the
placeholders of each modality, in usage.prompt_tokens_details.multimodal_tokens, video tokens before and after pruning.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

KEY = "tango_video_tokens"  # of a processed prompt
NAMES = ("video_before", "video_after")


SERVING = "vllm.entrypoints.openai.chat_completion.serving"


@functools.cache
def install() -> None:
    """Wrap, in memory, the function of vLLM that counts a prompt's placeholders. Without a server there is none."""
    serving = sys.modules.get(SERVING)
    if serving is None:
        return
    original = serving._get_mm_token_counts

    @functools.wraps(original)
    def counts(engine_input: Any) -> dict[str, int]:
        return {**original(engine_input), **(engine_input.get(KEY) or {})}

    serving._get_mm_token_counts = counts  # type: ignore[attr-defined]
