"""Loads checkpoints stored for the `llava` package (LLaVA-NeXT) straight into transformers' classes.

These are `lmms-lab/llava-onevision-qwen2-*` (LLaVA-OneVision, arXiv 2408.03326) and `lmms-lab/LLaVA-Video-7B-Qwen2`
(LLaVA-Video, arXiv 2410.02713), as hub ids or folders. Their config.json is Qwen2's with fields `mm_*`, their tensors
have the names of the `llava` package's modules. A tensor is renamed before it is read, so that it goes from its file to
its place in the model with no copy between. Which of the two it is, `mm_newline_position` tells. The pooling is that of
the published evaluations whatever the file says, as those do too: bilinear for LLaVA-OneVision, averages for
LLaVA-Video.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AddedToken,
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from tango.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration, LlavaVideoProcessor
from tango.models.pooling_head import DEFAULT_DIMENSIONS, DEFAULT_ID
from tango.models.tensors import INDEX, WEIGHTS, files_in, opened
from tango.models.versions import stored_config

# mm_newline_position -> what the checkpoint is.
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "one_token": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor),
    "grid": (LlavaVideoConfig, LlavaVideoForConditionalGeneration, LlavaVideoProcessor),
}
# Settings that would change the computation, and what they may be.
REQUIRED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": (None,),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_use_im_start_end": (False, None),
    "add_faster_video": (False, None),
}
ASPECT_RATIO = "anyres_max_9"
QWEN2 = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling",
    "use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# The vision tower of all published checkpoints (transformers' SiglipVisionConfig), so that it need not be fetched.
SO400M = Path(DEFAULT_ID).name
SO400M_CONFIG: dict[str, Any] = DEFAULT_DIMENSIONS | {"num_hidden_layers": 27}

TOWER = "model.vision_tower.vision_tower.vision_model."
# Beginnings of names: in the files, in the model.
RENAMES = {
    TOWER: "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.image_newline": "model.image_newline",
    "lm_head.": "lm_head.",
}
# Only the pooling head uses it, which reads its own: checkpoints may leave it out.
POST_LAYERNORM = {"model.vision_tower.post_layernorm.weight": 1.0, "model.vision_tower.post_layernorm.bias": 0.0}

# The `qwen_1_5` conversation of the `llava` package: ChatML. Visuals stand before the text they belong to, on a line of
# their own; several are separated by spaces.
TEMPLATE = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ '<' + part['type'] + '>' }}"
    "{%- if loop.last -%}"
    "{%- elif loop.nextitem['type'] != 'text' -%}{{ ' ' }}"
    "{%- elif loop.nextitem['text'][:1] not in [' ', '\\n'] -%}{{ '\\n' }}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def read_config(pretrained: str, revision: str = "main") -> dict[str, Any]:
    """The config.json of a folder or hub id, whatever it describes. Raises OSError where there is none."""
    config: Any = stored_config(pretrained, revision)
    thinker = config.get("thinker_config") if isinstance(config, dict) else None  # Qwen3-Omni's, beside its talker's
    return {**thinker, **config} if isinstance(thinker, dict) else config


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of a checkpoint for the `llava` package."""
    return "mm_vision_tower" in config


def original_class(config: Mapping[str, Any], pretrained: str) -> Any:
    """The class that a config.json of such a checkpoint stands for. Raises ValueError as load_original() does."""
    return KINDS[check(config, pretrained)][1]


def load_original(
    pretrained: str,
    *,
    revision: str = "main",
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    device_map: Any = None,
) -> tuple[Any, Any]:
    """Load a checkpoint of this layout, sharded or not.

    Args:
        pretrained: a folder or a hub id.
        dtype: "auto" is what the checkpoint was saved in.
        device_map: as in transformers' from_pretrained(); None loads to the CPU.

    Returns:
        The model (LlavaOnevisionForConditionalGeneration or LlavaVideoForConditionalGeneration) in evaluation mode, and
        its processor. `model.config._name_or_path` is the folder, which is also searched for SigLIP's pooling head.

    Raises:
        ValueError: a setting that these classes cannot honour, or tensors that are unknown, missing or of another shape
            than the configuration says; the message names them.
        FileNotFoundError: there are no safetensors, or no tokenizer.
    """
    raw = read_config(pretrained, revision)
    folder = Path(pretrained).expanduser()
    if not folder.is_dir():
        files = ["*.json", "*.safetensors", "merges.txt"]
        folder = Path(snapshot_download(pretrained, revision=revision, allow_patterns=files))
    config_class, model_class, processor_class = KINDS[check(raw, pretrained)]

    vision = vision_config(raw["mm_vision_tower"])
    tokenizer = load_tokenizer(folder, raw["vocab_size"])
    pinpoints = [[height, width] for width, height in grid_pinpoints(raw, vision.image_size)]
    config = config_class(
        text_config=Qwen2Config(**{name: raw[name] for name in QWEN2 if name in raw}),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,  # of the layers that are left
        vision_feature_select_strategy="full",
        vision_aspect_ratio=raw.get("image_aspect_ratio", ASPECT_RATIO),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        dtype=raw.get("torch_dtype", raw.get("dtype")),
    )
    if not (shards := files_in(folder)):
        raise FileNotFoundError(f"{folder} has neither {INDEX} nor {WEIGHTS}; only safetensors are read")
    with opened(shards) as tensors:
        model = model_class.from_pretrained(
            None,
            config=config,
            state_dict=renamed(tensors, model_class, config, str(folder)),
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
        )
    model.config._name_or_path = str(folder)
    model.generation_config = generation_config(folder, tokenizer)

    size = {"height": vision.image_size, "width": vision.image_size}
    pixels: dict[str, Any] = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = processor_class(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints, **pixels),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=TEMPLATE,
    )
    return model.eval(), processor


def check(raw: Mapping[str, Any], pretrained: str) -> str:
    """The newline position of a config.json, or ValueError for what KINDS and REQUIRED do not allow."""
    position: str = raw.get("mm_newline_position", "one_token")
    ratio = raw.get("image_aspect_ratio", ASPECT_RATIO)
    if not re.fullmatch(r"anyres_max_\d+", str(ratio)):
        raise ValueError(f"{pretrained!r} has image_aspect_ratio={ratio!r}; only anyres_max_<number> is known")
    architectures = raw.get("architectures") or ["LlavaQwenForCausalLM"]
    told = {"mm_newline_position": position, "architectures": architectures[0]} | {n: raw.get(n) for n in REQUIRED}
    allowed = {"mm_newline_position": tuple(KINDS), "architectures": ("LlavaQwenForCausalLM",)} | REQUIRED
    for name, value in told.items():
        if value not in allowed[name]:
            raise ValueError(
                f"{pretrained!r} has {name}={value!r}; LLaVA-OneVision and LLaVA-Video on Qwen2 have "
                f"{' or '.join(map(repr, allowed[name]))}"
            )
    return position


def vision_config(tower: str) -> Any:
    """The SigLIP of `mm_vision_tower`, a hub id or folder, without its head and last layer, which `llava` takes off."""
    config: Any = (
        SiglipVisionConfig(**SO400M_CONFIG) if Path(tower).name == SO400M else SiglipVisionConfig.from_pretrained(tower)
    )
    config.num_hidden_layers -= 1
    config.vision_use_head = False
    return config


def grid_pinpoints(raw: Mapping[str, Any], size: int) -> list[list[int]]:
    """Resolutions [width, height] of images in several parts: a list in pixels, or a text like "(1x1),...,(6x6)"."""
    given = raw["image_grid_pinpoints"]
    if isinstance(given, str):
        (w0, h0), *_, (w1, h1) = [(int(w), int(h)) for w, h in re.findall(r"\((\d+)x(\d+)\)", given)]
        return [[w * size, h * size] for w in range(w0, w1 + 1) for h in range(h0, h1 + 1)]
    return [list(pair) for pair in given]


def load_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Qwen2's tokenizer with the placeholders <image> and <video>, whose embeddings are never used."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{folder} has no tokenizer.json and no vocab.json with merges.txt")
    tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder, padding_side="left")
    for token in ("<image>", "<video>"):
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
        if (number := tokenizer.convert_tokens_to_ids(token)) >= vocabulary:
            raise ValueError(f"{folder}: {token} would be token {number}, and there are embeddings for {vocabulary}")
    return tokenizer


def generation_config(folder: Path, tokenizer: Any) -> GenerationConfig:
    """How the checkpoint generates: its special tokens and sampling.

    A repetition penalty is left out. Upstream generates from embeddings, where it only sees what was generated; here it
    would also see the question, and the letters of its options.
    """
    file = folder / "generation_config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p")
    settings = {"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "pad_token_id": tokenizer.pad_token_id}
    settings |= {name: stored[name] for name in names if stored.get(name) is not None}
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]


def renamed(tensors: Mapping[str, Any], model_class: Any, config: Any, where: str) -> dict[str, Any]:
    """The tensors under the names that the model has for them, without those it has no use for.

    Not used: SigLIP's pooling head and last layer, which some files hold; an output projection that is tied to the
    embeddings; buffers that older versions of transformers stored.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    tied, last = config.tie_word_embeddings, config.vision_config.num_hidden_layers
    if tied:
        del expected["lm_head.weight"]
        if "model.embed_tokens.weight" not in tensors and "lm_head.weight" in tensors:
            tensors = {**tensors, "model.embed_tokens.weight": tensors["lm_head.weight"]}
    unused = (TOWER + "head.", f"{TOWER}encoder.layers.{last}.", *(("lm_head.",) if tied else ()))

    wanted = {stored_name(name): (name, shape) for name, shape in expected.items()}
    found = {name: torch.full(expected[name], value) for name, value in POST_LAYERNORM.items()}
    problems = []
    for stored, tensor in tensors.items():
        if stored.startswith(unused) or stored.endswith((".rotary_emb.inv_freq", ".position_ids")):
            continue
        name, shape = wanted.pop(stored, ("", ()))
        if not name:
            problems.append(f"unknown: {stored}")
        elif (given := tuple(tensor.get_shape())) != shape:
            problems.append(f"{stored} has shape {given}, and the configuration says {shape}")
        else:
            found[name] = tensor
    lacking = sorted((name, stored) for stored, (name, _) in wanted.items() if name not in found)
    problems += [f"missing: {stored}" for _, stored in lacking]
    if problems:
        raise ValueError(f"{where} does not hold a {model_class.__name__}: {'; '.join(problems)}")
    return found


def stored_name(name: str) -> str:
    """The name that a tensor of the model has in the files."""
    prefix, new = next((prefix, new) for prefix, new in RENAMES.items() if name.startswith(new))
    return prefix + name.removeprefix(new)
