"""Checks of a checkpoint's files: what cannot be right is said before anything is computed with them.

Each raises CheckpointError, which names the checkpoint, what is wrong and, of a value, what would be right.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.activations import ACT2FN

from tango.inference.names import CheckpointError, called
from tango.models.tensors import INDEX, WEIGHTS, numbers_in, weight_map

# Fields of config.json that count something, and the most that is believed: far beyond any model of today.
COUNTS = dict.fromkeys(("hidden_size", "out_hidden_size", "intermediate_size", "vocab_size"), 2**24)
COUNTS |= dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "head_dim"), 2**16)
COUNTS |= {"num_hidden_layers": 1000, "depth": 1000, "image_size": 2**16, "patch_size": 2**16}
# The same of what a processor counts: pixels along a side of a frame, tokens of an image.
LARGEST = {"size.height": 2**13, "size.width": 2**13, "num_image_tokens": 2**17}
STORED = ("float16", "bfloat16", "float32", "float64")
# Files that hold a mapping; their names go on with .json.
MAPPINGS = ("generation_config", "processor_config", "preprocessor_config", "video_preprocessor_config",
            "tokenizer_config", "special_tokens_map", "added_tokens")  # fmt: skip
# Fields of generation_config.json by what they hold.
BEAMS = ("num_beams", "num_beam_groups", "num_return_sequences")
NUMBERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty", "max_length",
           "min_length", "max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "guidance_scale")  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens",
          "forced_bos_token_id", "forced_eos_token_id")  # fmt: skip
ENDS = set(TOKENS) - {"bos_token_id"}  # which nothing that has a prompt asks for
TEMPLATE_SECONDS = 3.0  # for one message, of which a template needs some milliseconds


def _refuse(pretrained: str, where: str, name: str, value: Any, right: str) -> NoReturn:
    raise CheckpointError(f"{pretrained!r}: its {where} has {name} = {value!r}; expected {right}")


def check_config(config: Mapping[str, Any], pretrained: str) -> None:
    """Turn away a config.json with a field that cannot be, by its name."""
    refuse = functools.partial(_refuse, pretrained, "config.json")
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        refuse("architectures", named, "a list of names of classes")
    for part in ("", "text_config", "vision_config"):
        fields = config.get(part) if part else config
        if not isinstance(fields, Mapping):
            continue  # transformers says what is wrong with it, or takes a default
        for field, value in fields.items():
            name = f"{part}.{field}" if part else field
            most = COUNTS.get(field)
            # InternVL's has height and width.
            counted = value if field in ("image_size", "patch_size") and isinstance(value, list) and value else [value]
            if most and value is not None and not all(type(one) is int and 1 <= one <= most for one in counted):
                refuse(name, value, f"a whole number from 1 to {most}")
            if field.endswith("hidden_act") and str(value) not in ACT2FN:
                refuse(name, value, f"an activation that transformers has, one of {', '.join(ACT2FN)}")
            stored = str(value).removeprefix("torch.")
            if field in ("dtype", "torch_dtype") and value not in (None, "auto") and stored not in STORED:
                refuse(name, value, f"one of {', '.join(STORED)}")
    layers = (config.get("vision_config") or {}).get("num_hidden_layers")
    chosen = config.get("vision_feature_layer")
    for layer in chosen if isinstance(chosen, list) else [chosen]:
        if isinstance(layer, int) and layers and not -layers - 1 <= layer <= layers:
            refuse("vision_feature_layer", layer, f"a layer of the {layers} that the vision tower has")


def check_files(pretrained: str) -> None:
    """Turn away a folder of which a JSON file is something else than a mapping."""
    for name in MAPPINGS:
        file = Path(pretrained).expanduser() / f"{name}.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{pretrained!r}: its {file.name} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{pretrained!r}: its {file.name} holds no mapping")


def check_size(model: Any, pretrained: str) -> None:
    """Turn away a folder whose config.json describes more than twice what its weights hold, before room is made for it.

    model: built as config.json says, on the device "meta".
    """
    folder = Path(pretrained).expanduser()
    names = set(weight_map(folder / INDEX).values()) if (folder / INDEX).is_file() else {WEIGHTS}
    held = sum(numbers_in(folder / name) for name in names if (folder / name).is_file())
    described = sum(parameter.numel() for parameter in model.parameters())
    if held and described > 2 * held:
        raise CheckpointError(
            f"{pretrained!r}: the weights are not those of its config.json, which describes {described:,} parameters; "
            f"they hold {held:,}"
        )


def check_generation(settings: Mapping[str, Any], vocabulary: int, pretrained: str) -> None:
    """Turn away settings of a generation_config.json with which nothing could be generated, or nothing would end.

    vocabulary: how many tokens the model has.
    """
    for field, value in settings.items():
        right = None
        if value is None:
            continue
        if field in BEAMS and not (type(value) is int and value >= 1):
            right = "a whole number of at least 1"
        if field in NUMBERS and not (isinstance(value, int | float) and not isinstance(value, bool)):
            right = "a number"
        elif field == "repetition_penalty" and not value > 0:
            right = "a number above 0"
        if field == "stop_strings":
            right = "none: where replies end is the task's to say"
        every = value if isinstance(value, list) else [value]
        if field in TOKENS and not all(type(token) is int for token in every):
            right = "a token's number, or a list of them"
        elif field in ENDS and not all(0 <= token < vocabulary for token in every):
            right = f"tokens of the model, which are numbered 0 to {vocabulary - 1}"
        if field == "bad_words_ids" and not (isinstance(value, list) and value):
            right = "a list of lists of tokens' numbers"
        if right is not None:
            _refuse(pretrained, "generation_config.json", field, value, right)


def check_weights(pretrained: str) -> None:
    """Turn away a folder without safetensors."""
    folder = Path(pretrained).expanduser()
    if (folder / INDEX).is_file():
        weight_map(folder / INDEX)  # refuses files elsewhere, and of other kinds
    if not folder.is_dir() or any((folder / name).is_file() for name in (INDEX, WEIGHTS)):
        return
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind))
    there = f"only {', '.join(pickled)}: pickled weights can run code and are not read" if pickled else "no weights"
    raise CheckpointError(f"{pretrained!r} holds {there}; put {WEIGHTS} there (or {INDEX} and its files)")


def check_report(report: Mapping[str, Any], pretrained: str) -> None:
    """Turn away weights that do not fit their config.json; transformers would make up what is missing."""
    # A SigLIP tower may bring its head and last layer, which no model uses; Qwen3-Omni what speaks.
    apart = ("talker.", "code2wav.")
    found = [name for name in report["unexpected_keys"] if "vision" not in name and not name.startswith(apart)]
    strange = [name for name in found if not name.endswith(".rotary_emb.inv_freq")]
    kinds = {"missing": report["missing_keys"], "of another shape": [name for name, *_ in report["mismatched_keys"]]}
    for kind, names in (kinds | {"of no use to it": strange}).items():
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", .." if len(names) > 3 else "")
            raise CheckpointError(
                f"{pretrained!r}: the weights are not those of its config.json; {len(names)} tensors are {kind}: "
                f"{listed}"
            )


def check_processor(processor: Any, model: Any, pretrained: str) -> None:
    """Turn away a processor that would put something else into the prompt than the model knows."""
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "video_processor"):
        raise CheckpointError(
            f"{pretrained!r}: its processor_config.json (processor_class) gives a {type(processor).__name__}, which is "
            "no processor of videos and text"
        )
    size = dict(processor.video_processor.size or {})
    counts = {f"size.{side}": size[side] for side in ("height", "width") if size.get(side) is not None}
    counts |= {"num_image_tokens": getattr(processor, "num_image_tokens", None) or 1}
    for name, value in counts.items():
        if not (type(value) is int and 1 <= value <= LARGEST[name]):
            _refuse(pretrained, "processor", name, value, f"a whole number from 1 to {LARGEST[name]}")
    template = called("pass chat_template=<file>")
    if not processor.chat_template:
        raise CheckpointError(f"{pretrained!r} has no chat template; {template}")
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}
    try:
        with limited(TEMPLATE_SECONDS):
            prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        for wanted in (processor.video_token, "What?"):
            if prompt.count(wanted) != 1:
                raise ValueError(f"of a video and a question it makes a prompt with {prompt.count(wanted)} {wanted}")
    except Exception as error:  # a template is a program, and may fail in any way
        what = str(error) or type(error).__name__
        raise CheckpointError(f"{pretrained!r}: its chat template cannot be used: {what}; {template}") from error
    tokenizer = processor.tokenizer
    if not tokenizer.encode("A", add_special_tokens=False):
        raise CheckpointError(f"{pretrained!r}: its tokenizer knows no letters; its tokenizer.json is missing")
    kind = "video" if hasattr(model.config, "video_token_id") else "image"  # InternVL's frames stand as images
    token, expected = getattr(processor, f"{kind}_token"), getattr(model.config, f"{kind}_token_id")
    known = tokenizer.convert_tokens_to_ids(token)
    if known != expected:
        raise CheckpointError(
            f"{pretrained!r}: its tokenizer has {token} as token {known}, its config.json says "
            f"{expected}; tokenizer files are missing, or of another checkpoint"
        )


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that runs for longer, whichever thread it is in."""
    ends, before = time.monotonic() + seconds, sys.gettrace()

    def look(*_: Any) -> Any:
        if time.monotonic() > ends:
            raise TimeoutError(f"it did not end within {seconds:g} s")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def in_one_line(pretrained: str, files: str) -> Iterator[None]:
    """Turn what libraries say against a checkpoint's files into one line that names them."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = " ".join(lines[:2] if isinstance(error, StrictDataclassError) else lines[:1]) or type(error).__name__
        if "custom code" in what:
            what = f"{pretrained!r} needs code that it brings along, which is not run"
        if "couldn't connect" in what and is_offline_mode():
            what = (
                f"{pretrained!r} is no folder and not in {HF_HUB_CACHE}, and HF_HUB_OFFLINE says not to ask the hub; "
                "unset it, or give a folder"
            )
        if pretrained not in what:
            what = f"{pretrained!r} cannot be loaded: {files}: {what}"
        raise CheckpointError(what) from error
    except Exception as error:  # what a field does not fit may fail in any way
        starved = any(sign in str(error) for sign in ("can't allocate memory", "can't start new thread"))
        if starved or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(f"{pretrained!r} cannot be loaded: {files}: {type(error).__name__}: {first}") from error
