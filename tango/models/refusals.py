"""What cannot work while a pruner is attached, each with the sentence that says so; the caller raises what it gets."""

from typing import Any

# Ways of generating that read the prompt's ids where ours needs its embeddings, or that replace generate() altogether.
UNSUPPORTED = (
    "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "prefill_chunk_size", "token_healing",
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "penalty_alpha", "dola_layers", "force_words_ids",
    "constraints",
)  # fmt: skip
NO_TIMES = "frames are taken to be 1 s apart; pass video_timestamps, or video_metadata with the frames' rate"


def assistant(model: Any, method: str) -> ValueError:
    """Assisted generation asks a model with a pruner for drafts."""
    return ValueError(
        f"this {type(model).__name__} has a pruner attached ({method}) and cannot be the assistant of another model: "
        "leave the pruner's context first"
    )


def unsupported(name: str, value: Any) -> ValueError:
    """A way of generating; models, configs and long lists are shown by the names of their classes."""
    text = repr(value)
    shown = text if len(text) < 60 and "\n" not in text else type(value).__name__
    return ValueError(f"{name}={shown} does not work while a pruner is attached; leave it out")


def encoded_already() -> ValueError:
    """Videos that are encoded before the call."""
    return ValueError(
        "mm_encoder_outputs does not work while a pruner is attached: videos are pruned as they are encoded; "
        "pass pixel_values_videos, and images as pixel_values"
    )


def cache_in_use(held: int) -> ValueError:
    """Videos are pruned at prefill: columns of an earlier prompt could not be told apart from those of this one."""
    return ValueError(
        f"the cache holds {held} tokens and the prompt a video: while a pruner is attached "
        "videos must come in the first prompt; leave out those that the cache holds, or pass an empty cache"
    )


def hidden_placeholders(tokens: int, places: int) -> ValueError:
    """A mask that hides some of a video's placeholders."""
    return ValueError(
        f"{tokens} embeddings of a video have {places} places in the prompt: attention_mask hides "
        "placeholders of the video"
    )
