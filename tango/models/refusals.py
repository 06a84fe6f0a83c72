"""What cannot work while a pruner is attached, each with the sentence that says so; the caller raises what it gets."""

from collections.abc import Callable
from typing import Any

Refusal = Callable[[], ValueError]

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


def check_methods(core: Any, *names: str) -> None:
    """Raise TypeError if a method of a model's core, or one that it wraps, is code of neither transformers nor Tango.

    For methods whose work a family does itself: what somebody else has changed there would be left out.
    """
    for name in names:
        method = getattr(core, name)
        while method is not None:
            package = getattr(method, "__globals__", {}).get("__name__", "").partition(".")[0]
            if package not in ("transformers", "tango"):
                raise TypeError(
                    f"{name}() of this {type(core).__name__} is not transformers' own, and a pruner does not call it: "
                    "change the vision tower or the projector, which it calls, or leave the method as it is"
                )
            method = getattr(method, "__wrapped__", None)


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
        "videos must come in the first prompt; leave out those that the cache holds, or pass an empty cache (prefix "
        "tuning, which fills it, does not work here)"
    )


def past() -> ValueError:
    """A video reaches an attached model without having been pruned."""
    return ValueError(
        "a video came past the pruner, and would not be pruned: while it is attached call model.generate() or model() "
        "with the processor's inputs, not a part of the model, nor a generate() that was taken from it before, or one "
        "of your own that prepares the video (call that otherwise); what puts its own forward() on a model, as TRL's "
        "trainers do, must do so before"
    )


def part_copied(hooked: Any, protocol: Any) -> Any:
    """The __reduce_ex__() of objects whose methods are hooks: a copied or pickled part of the model would have them."""
    raise RuntimeError("a pruner is attached: leave its context before you copy or pickle a part of the model")


def virtual_tokens() -> ValueError:
    """PEFT's prompt and prefix tuning, which make the first step's prompt themselves."""
    return ValueError(
        "this model's prepare_inputs_for_generation() takes no inputs_embeds, as with PEFT's prompt and prefix tuning: "
        "virtual tokens do not work with generate() while a pruner is attached; take an adapter without, as LoRA"
    )


def replaced_since(part: str) -> RuntimeError:
    """A part of the model was replaced, and with it the hooks of the pruner are gone."""
    return RuntimeError(
        f"the {part} was replaced since the pruner was attached, as by PEFT's modules_to_save: leave its context, and "
        "attach it again"
    )


def hidden_placeholders(tokens: int, places: int) -> ValueError:
    """A mask that hides some of a video's placeholders."""
    return ValueError(
        f"{tokens} embeddings of a video have {places} places in the prompt: attention_mask hides "
        "placeholders of the video"
    )
