"""Checkpoints of the `llava` package's layout: the model that comes out is the one that went in, to the bit."""

import json

import numpy as np
import pytest
import torch
from original_layout import (
    IMAGE,
    LAYERS,
    TOWER,
    VIDEO,
    VOCABULARY,
    original_config,
    original_name,
    original_tensors,
    small_model,
    write_original,
)
from tiny_llava import make_head, make_pruner, pixels
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from tango.models.llava_onevision import LlavaOnevision
from tango.models.llava_video import LlavaVideoForConditionalGeneration, LlavaVideoProcessor
from tango.models.original import (
    TEMPLATE,
    grid_pinpoints,
    is_original,
    load_original,
    read_config,
    renamed,
    vision_config,
)

KINDS = [LlavaOnevisionForConditionalGeneration, LlavaVideoForConditionalGeneration]
FRAMES = 3


def prompt(model):
    """A prompt with an image and a video."""
    placeholders = FRAMES * 9 + 1 if type(model) is KINDS[0] else FRAMES * 2 * 3
    image, sizes = torch.randn(1, 2, 3, 40, 40, generator=torch.Generator().manual_seed(5)), torch.tensor([[40, 40]])
    parts = int(model.get_image_features(image, sizes).pooler_output[0].shape[0])
    ids = torch.tensor([[5, *[IMAGE] * parts, 6, *[VIDEO] * placeholders, 7, 8]])
    video = pixels(1, FRAMES).to(model.dtype)
    return {"input_ids": ids, "pixel_values": image.to(model.dtype), "image_sizes": sizes, "pixel_values_videos": video}


@torch.no_grad()
def same(loaded, source):
    inputs = prompt(source)
    assert torch.equal(loaded(**inputs).logits, source(**inputs).logits)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **settings), source.generate(**inputs, **settings))
    mine, theirs = loaded.state_dict(), source.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(tmp_path, kind, shards, tied):
    source = small_model(kind, tied)
    write_original(tmp_path / "it", source, shards)
    model, processor = load_original(str(tmp_path / "it"))
    assert type(model) is kind and not model.training and model.dtype == torch.float32
    assert isinstance(processor, LlavaVideoProcessor) == (kind is LlavaVideoForConditionalGeneration)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    same(model, source)


@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}])
def test_precision_and_devices(tmp_path, device_map):
    source = small_model(KINDS[1], dtype=torch.bfloat16)
    write_original(tmp_path / "it", source, 2)
    model, _ = load_original(str(tmp_path / "it"), device_map=device_map, attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    source.set_attn_implementation("eager")
    same(model, source)
    wide, _ = load_original(str(tmp_path / "it"), dtype=torch.float32)
    source.set_attn_implementation("sdpa")
    same(wide, source.float())


def test_saved_again_it_is_in_transformers_format(tmp_path):
    source = small_model(KINDS[1], tied=True)
    write_original(tmp_path / "it", source)
    model, processor = load_original(str(tmp_path / "it"))
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    assert not is_original(read_config(str(tmp_path / "new")))
    same(KINDS[1].from_pretrained(tmp_path / "new").eval(), source)
    again = LlavaVideoProcessor.from_pretrained(tmp_path / "new")
    assert again.chat_template == TEMPLATE and again.video_token_id == VIDEO


def test_head_and_last_layer_in_the_file(tmp_path):
    """Both are in SigLIP's own checkpoint, and in files of those who saved all of it: the head is Tango's saliency."""
    source = small_model(KINDS[0])
    head = {f"{TOWER}{name.removeprefix('vision_model.')}": value for name, value in
            make_head(source.config.vision_config).items()}  # fmt: skip
    first = f"{TOWER}encoder.layers.0."
    last = {name.replace(first, f"{TOWER}encoder.layers.{LAYERS - 1}."): value.clone()
            for name, value in original_tensors(source).items() if name.startswith(first)}  # fmt: skip
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
               f"{TOWER}embeddings.position_ids": torch.arange(25)[None]}  # fmt: skip
    post = {name: value for name, value in head.items() if ".post_layernorm." in name}
    everything = original_tensors(source) | last | buffers | head
    write_original(tmp_path / "it", source, 2, everything)
    source.model.vision_tower.post_layernorm.load_state_dict(
        {name.rpartition(".")[2]: value for name, value in post.items()}
    )
    model, _ = load_original(str(tmp_path / "it"))
    same(model, source)
    read = LlavaOnevision(model, make_pruner("tango", 0.5)).head.tensors
    assert torch.equal(read["head.probe"], head[f"{TOWER}head.probe"])


def test_without_the_layer_norm_that_only_the_head_uses(tmp_path):
    source = small_model(KINDS[0])
    torch.nn.init.ones_(source.model.vision_tower.post_layernorm.weight)
    torch.nn.init.zeros_(source.model.vision_tower.post_layernorm.bias)
    write_original(
        tmp_path / "it", source, tensors={k: v for k, v in original_tensors(source).items() if "post_l" not in k}
    )
    same(load_original(str(tmp_path / "it"))[0], source)


def test_tied_to_an_output_projection(tmp_path):
    """safetensors store one of two shared tensors, whichever it is."""
    source = small_model(KINDS[0], tied=True)
    tensors = original_tensors(source)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write_original(tmp_path / "it", source, tensors=tensors)
    same(load_original(str(tmp_path / "it"))[0], source)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    source = small_model(KINDS[0])
    tensors = original_tensors(source)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.mm_projector.4.weight"] = torch.ones(2)
    tensors["model.vision_resampler.query"] = torch.ones(2)
    tensors["model.image_newline"] = torch.ones(3)
    write_original(tmp_path / "it", source, tensors=tensors)
    with pytest.raises(ValueError, match="LlavaOnevisionForConditionalGeneration: ") as caught:
        load_original(str(tmp_path / "it"))
    said = str(caught.value).partition("Generation: ")[2].split("; ")
    assert sorted(said) == [
        "missing: model.layers.1.mlp.up_proj.weight",
        "missing: model.norm.weight",
        "model.image_newline has shape (3,), and the configuration says (24,)",
        "unknown: model.mm_projector.4.weight",
        "unknown: model.vision_resampler.query",
    ]


def test_files_that_do_not_fit_are_named(tmp_path):
    write_original(tmp_path / "it", small_model(KINDS[0]), 2)
    index = tmp_path / "it" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"model.extra": first}}))
    with pytest.raises(ValueError, match=r"files do not hold: model\.extra$"):
        load_original(str(tmp_path / "it"))
    (tmp_path / "it" / first).unlink()
    with pytest.raises(FileNotFoundError, match=first):
        load_original(str(tmp_path / "it"))
    index.unlink()
    with pytest.raises(FileNotFoundError, match="only safetensors are read"):
        load_original(str(tmp_path / "it"))
    for name in ("tokenizer.json", "vocab.json"):
        (tmp_path / "it" / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no vocab"):
        load_original(str(tmp_path / "it"))


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("architectures", ["LlavaLlamaForCausalLM"], "'LlavaQwenForCausalLM'"),
        ("mm_newline_position", "frame", "'one_token' or 'grid'"),
        ("mm_projector_type", "linear", "'mlp2x_gelu'"),
        ("mm_patch_merge_type", "flat", "'spatial_unpad'"),
        ("mm_resampler_type", "qformer", "None"),
        ("image_aspect_ratio", "pad", "anyres_max_<number>"),
        ("vocab_size", VIDEO, "embeddings for"),
    ],
)
def test_settings_that_cannot_be(tmp_path, name, value, right):
    write_original(tmp_path / "it", small_model(KINDS[0]), **{name: value})
    with pytest.raises(ValueError, match=right):
        load_original(str(tmp_path / "it"))


class Shape:
    """As much of a safetensors slice as renaming looks at."""

    def __init__(self, *shape):
        self.shape = shape

    def get_shape(self):
        return list(self.shape)


def test_the_published_checkpoints_names_and_shapes():
    """LLaVA-OneVision-7B's tensors, written out from the modules of the `llava` package."""
    tensors = {
        "model.embed_tokens.weight": Shape(152064, 3584),
        "model.norm.weight": Shape(3584),
        "lm_head.weight": Shape(152064, 3584),
        "model.image_newline": Shape(3584),
        "model.mm_projector.0.weight": Shape(3584, 1152),
        "model.mm_projector.2.weight": Shape(3584, 3584),
        f"{TOWER}embeddings.patch_embedding.weight": Shape(1152, 3, 14, 14),
        f"{TOWER}embeddings.patch_embedding.bias": Shape(1152),
        f"{TOWER}embeddings.position_embedding.weight": Shape(729, 1152),
        f"{TOWER}post_layernorm.weight": Shape(1152),
        f"{TOWER}post_layernorm.bias": Shape(1152),
    }
    tensors |= {f"model.mm_projector.{n}.bias": Shape(3584) for n in (0, 2)}
    for layer in (f"model.layers.{n}." for n in range(28)):
        for name, rows in (("q", 3584), ("k", 512), ("v", 512)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = Shape(rows, 3584)
            tensors[f"{layer}self_attn.{name}_proj.bias"] = Shape(rows)
        tensors[f"{layer}self_attn.o_proj.weight"] = Shape(3584, 3584)
        tensors |= {f"{layer}mlp.{name}_proj.weight": Shape(18944, 3584) for name in ("gate", "up")}
        tensors[f"{layer}mlp.down_proj.weight"] = Shape(3584, 18944)
        tensors |= {f"{layer}{name}_layernorm.weight": Shape(3584) for name in ("input", "post_attention")}
    for layer in (f"{TOWER}encoder.layers.{n}." for n in range(26)):
        for name, shape in (
            ("self_attn.q_proj", (1152, 1152)), ("self_attn.k_proj", (1152, 1152)), ("self_attn.v_proj", (1152, 1152)),
            ("self_attn.out_proj", (1152, 1152)), ("mlp.fc1", (4304, 1152)), ("mlp.fc2", (1152, 4304)),
            ("layer_norm1", (1152,)), ("layer_norm2", (1152,)),
        ):  # fmt: skip
            tensors |= {f"{layer}{name}.weight": Shape(*shape), f"{layer}{name}.bias": Shape(shape[0])}
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    vision = vision_config("google/siglip-so400m-patch14-384")
    config = LlavaOnevisionConfig(text_config=Qwen2Config(**text), vision_config=vision)
    found = renamed(tensors, LlavaOnevisionForConditionalGeneration, config, "it")
    assert len(found) == len(tensors) == 12 + 12 * 28 + 16 * 26 + 1
    assert {original_name(name) for name in found} == set(tensors)


def test_pinpoints(tmp_path):
    assert grid_pinpoints({"image_grid_pinpoints": "(1x1),...,(2x3)"}, 384) == [
        [384 * w, 384 * h] for w in (1, 2) for h in (1, 2, 3)
    ]
    source = small_model(KINDS[0])
    write_original(tmp_path / "it", source)
    model, processor = load_original(str(tmp_path / "it"))
    assert model.config.image_grid_pinpoints == source.config.image_grid_pinpoints == [[40, 40], [40, 80]]
    assert processor.image_processor.image_grid_pinpoints == [[40, 40], [40, 80]]
    assert original_config(source, "")["image_grid_pinpoints"] == [[40, 40], [80, 40]]  # width first


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "it"
    write_original(folder, small_model(request.param))
    return load_original(str(folder))


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
VISUAL, SHOWN = {"type": "video"}, {"type": "image"}


def said(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", [VISUAL, said("Why?")])], "<|im_start|>user\n<video>\nWhy?<|im_end|>\n"),
        ([("user", [VISUAL, said("1 s.\n"), said("Why?")])], "<|im_start|>user\n<video>\n1 s.\nWhy?<|im_end|>\n"),
        ([("user", [SHOWN, SHOWN, said("Why?")])], "<|im_start|>user\n<image> <image>\nWhy?<|im_end|>\n"),
        ([("user", [said("In "), SHOWN, said(" what?")])], "<|im_start|>user\nIn <image> what?<|im_end|>\n"),
        ([("user", [said("In "), SHOWN, said("\nwhat?")])], "<|im_start|>user\nIn <image>\nwhat?<|im_end|>\n"),
        ([("user", [said("Why "), SHOWN])], "<|im_start|>user\nWhy <image><|im_end|>\n"),
        (
            [("user", [VISUAL, said("Why?")]), ("assistant", [said("So.")]), ("user", "And?")],
            "<|im_start|>user\n<video>\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
            "<|im_start|>user\nAnd?<|im_end|>\n",
        ),
    ],
)
def test_prompts(loaded, messages, expected):
    """The text of `conv_templates["qwen_1_5"]`; a video stands where that has <image>."""
    _, processor = loaded
    messages = [{"role": role, "content": content} for role, content in messages]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        SYSTEM + expected + "<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": [said("Be brief.")]}, *messages]
    assert processor.apply_chat_template(own) == "<|im_start|>system\nBe brief.<|im_end|>\n" + expected


def test_from_a_question_to_an_answer(loaded):
    model, processor = loaded
    text = processor.apply_chat_template([{"role": "user", "content": [VISUAL, said("Why?")]}])
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 3, 30, 50), dtype=np.uint8)
    inputs = processor(text=[text], videos=[frames], return_tensors="pt")
    count = FRAMES * 9 + 1 if type(model) is KINDS[0] else FRAMES * 2 * 3
    plain = processor.tokenizer(text).input_ids
    place = plain.index(VIDEO)
    assert inputs["input_ids"][0].tolist() == [*plain[:place], *[VIDEO] * count, *plain[place + 1 :]]
    assert inputs["pixel_values_videos"].shape == (1, FRAMES, 3, 40, 40)
    assert inputs["pixel_values_videos"].abs().max() <= 1  # SigLIP's mean and deviation are 0.5
    # What stands around a placeholder is tokenised by itself, as it is upstream.
    before, after = text.split("<video>")
    assert plain[:place] == processor.tokenizer(before).input_ids
    assert plain[place + 1 :] == processor.tokenizer(after).input_ids
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= inputs["input_ids"].shape[1] + 3


def test_how_it_generates(loaded):
    model, processor = loaded
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id, settings.do_sample) == ([2, 0], 0, True)
    assert settings.temperature == 0.7 and settings.repetition_penalty is None
    assert processor.tokenizer.padding_side == "left"
    assert model.config.image_token_id == IMAGE and model.config.video_token_id == VIDEO < VOCABULARY
