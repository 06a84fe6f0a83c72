"""The vision tower that computes what changes: the rule against a slow version, published numbers, and bad input."""

import json
import math

import pytest
import tiny_llava
import tiny_qwen
import torch
from families import FAMILIES
from golden_cases import cases
from safetensors import safe_open
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from tango.models import merging, reuse
from tango.models.qwen2_5_vl import window_order
from tango.models.reuse import Plan, sources, stc_layer, stc_references
from tango.pruners import REGISTRY, EarlyTom, Uniform

STC, EARLYTOM = cases("stc_cacher"), cases("earlytom_tower")
WHOLE = {"retention_ratio": 1.0, "positions": "transformers"}


def encoder(path):
    """The tower of a case with its own weights, its states before the first layer, all tensors, parameters."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parameters = json.loads(file.metadata()["parameters"])
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "hidden_act",
             "layer_norm_eps")  # fmt: skip
    settings = {name: parameters[name] for name in names} | {
        "patch_size": 8,
        "image_size": 8 * parameters["grid_width"],
    }
    tower = SiglipVisionModel(SiglipVisionConfig(**settings, vision_use_head=False)).eval()
    tower.encoder.load_state_dict({k[len("encoder.") :]: v for k, v in tensors.items() if k.startswith("encoder.")})
    return tower, tensors["inputs_embeds"].float(), tensors, parameters


def test_all_cases_are_here():
    assert len(STC) == len(EARLYTOM) == 6


@torch.no_grad()
@pytest.mark.parametrize("path", STC, ids=lambda path: path.stem)
def test_stc_cacher_as_published(path):
    tower, states, tensors, parameters = encoder(path)
    reference = stc_references(len(states), parameters["cache_interval"], parameters["chunk_size"])
    own = (reference == torch.arange(len(states))).nonzero()[:, 0]
    assert own.tolist() == parameters["reference_frames"]
    count = max(1, int(states.shape[1] * parameters["update_token_ratio"]))
    chosen = []
    for number, layer in enumerate(tower.encoder.layers):
        states, changed = stc_layer(layer, states, reference, count, all_queries=number % 2 == 1)
        chosen.append(changed)
    torch.testing.assert_close(states, tensors["last_hidden_state"], atol=2e-5, rtol=1e-5)
    if "recomputed" in tensors:
        assert torch.equal(torch.stack(chosen), tensors["recomputed"])
    else:
        assert len(own) == len(states)


@torch.no_grad()
@pytest.mark.parametrize("path", EARLYTOM, ids=lambda path: path.stem)
def test_earlytom_merges_in_the_tower_as_published(path):
    tower, states, tensors, parameters = encoder(path)
    settings = {name: parameters[name] for name in ("similarity_threshold", "max_window", "ema")}
    method = EarlyTom(prune_layers=tuple(parameters["prune_layers"]), **settings)
    frames = merging.MergedFrames(tower, method, len(states))
    with reuse.replaced(frames.layers):
        output = tower.encoder(inputs_embeds=states).last_hidden_state
    torch.testing.assert_close(output, tensors["last_hidden_state"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(frames.attention, tensors["attention"], atol=1e-6, rtol=1e-5)
    assert frames.groups == [tuple(pair) for pair in tensors["groups"].tolist()]
    assert len(frames.stands) == len(output)
    assert all("forward" not in vars(layer) for layer in tower.encoder.layers)


def slow_sources(patches, threshold, interval):
    """The rule, a patch at a time."""
    frames, count = len(patches), len(patches[0])
    broken = [not all(math.isfinite(x) for patch in frame for x in patch) for frame in patches]
    source = [[0] * count]
    for f in range(1, frames):
        changed = []
        for p in range(count):
            held = patches[source[f - 1][p]][p]
            error = sum((a - b) ** 2 for a, b in zip(patches[f][p], held, strict=True)) / len(held)
            changed.append(not math.sqrt(error) <= threshold if math.isfinite(error) else True)
        if f % interval == 0 or broken[f] or broken[f - 1] or sum(changed) > count / 2:
            changed = [True] * count
        source.append([f if new else source[f - 1][p] for p, new in enumerate(changed)])
    return source


@pytest.mark.parametrize("seed", range(8))
def test_the_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(1, 12, 5, generator=generator).repeat(11, 1, 1)
    moving = torch.rand(11, 12, generator=generator) < (0.2, 0.45)[seed % 2]
    patches = patches + 0.3 * moving[..., None] * torch.randn(11, 12, 5, generator=generator)
    patches[6:] += 2.0 * (seed % 3 == 0)  # a cut
    if seed > 4:
        patches[4, 3, 1] = math.nan
    assert sources(patches, 0.1, 5).tolist() == slow_sources(patches.tolist(), 0.1, 5)


def slow_siglip(layers, states, source):
    """States after some layers of SigLIP where the states (P, D) of frames are computed patch by patch."""
    computed = [[source[f][p] == f for p in range(states.shape[1])] for f in range(len(states))]
    for layer in layers:
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        out = states.clone()
        for f in range(len(states)):
            seen = torch.stack([states[source[f][p], p] for p in range(states.shape[1])])
            normed = layer.layer_norm1(seen)
            q, k, v = (
                m(normed).unflatten(-1, (heads, -1)) for m in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            for p in range(states.shape[1]):
                if not computed[f][p]:
                    continue
                weights = torch.softmax(torch.einsum("hd,phd->hp", q[p], k) * attention.head_dim**-0.5, -1)
                x = seen[p] + attention.out_proj(torch.einsum("hp,phd->hd", weights, v).flatten())
                out[f, p] = x + layer.mlp(layer.layer_norm2(x))
        for f in range(len(states)):
            for p in range(states.shape[1]):
                out[f, p] = out[source[f][p], p]
        states = out
    return states


@torch.no_grad()
def test_the_layers_of_siglip(tmp_path):
    layers = tiny_llava.build_model(tmp_path, num_hidden_layers=2).model.vision_tower.encoder.layers
    states = torch.randn(7, 25, 32, generator=torch.Generator().manual_seed(0))
    patches = states[:1].repeat(7, 1, 1)
    patches[torch.rand(7, 25, generator=torch.Generator().manual_seed(1)) < 0.3] += 1
    source = sources(patches, 0.1, 4)
    states = states.gather(0, source[..., None].expand(-1, -1, 32))
    plan, found = Plan.of(source), states
    assert 7 < len(plan.rows) < 7 * 25
    for layer in layers:
        found = reuse.siglip_layer(layer, plan, found)
    torch.testing.assert_close(found, slow_siglip(layers, states, source.tolist()), atol=1e-5, rtol=1e-5)


REUSING = ("llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_omni_moe")


@pytest.fixture(params=REUSING)
def family(request):
    """Every family whose tower reuses."""
    return FAMILIES[request.param]


# -- whole models ------------------------------------------------------------------------------------------------------


def moving(family, frames=6):
    """Inputs for a video of a still picture, of which some patches change, and which (frames, patches) bool."""
    inputs = {name: tensor.clone() for name, tensor in family.pixels(1, frames).items()}
    pixels = inputs["pixel_values_videos"]
    generator = torch.Generator().manual_seed(3)
    if pixels.dim() == 5:  # whole frames, the patches of which are 8 x 8
        side = pixels.shape[-1] // 8
        changed = torch.rand(frames, side * side, generator=generator) < 0.25
        pixels[0, 1:] = pixels[0, 0].clone()
        for frame, patch in changed[1:].nonzero().tolist():
            top, left = 8 * (patch // side), 8 * (patch % side)
            pixels[0, frame + 1, :, top : top + 8, left : left + 8] += 1 + frame
    else:
        rows = pixels.view(frames, -1, pixels.shape[-1])
        changed = torch.rand(rows.shape[:2], generator=generator) < 0.25
        rows[1:], changed[0] = rows[:1].clone(), False
        rows[changed] += 1 + changed.nonzero()[:, :1]
    changed[0] = True
    return inputs | family.prompt([5, *family.video(frames), 6]), changed


def layers_of(family, model):
    tower = family.tower(model)
    return tower.encoder.layers if hasattr(tower, "encoder") else tower.blocks


def seen(family, inputs, **settings):
    """Logits, the record of the video, and what its tower's first layer put out, (patches, D)."""
    model, out = family.model(), []
    hook = layers_of(family, model)[0].register_forward_hook(lambda *call: out.append(call[-1].flatten(0, -2)))
    try:
        with torch.no_grad(), Uniform(**WHOLE | settings)(model) as session:
            logits = model(**inputs).logits
    finally:
        hook.remove()
    return logits, session.videos[0], torch.cat(out)


PIXELS = {"tower_reuse": "pixels", "tower_reuse_layers": 1.0}


def test_the_first_layer_of_every_family(family):
    """Computed patches come out as they do from the whole tower; still ones as in the frame before.

    A patch that changes is another than before and after, so both frames count as changed; and one of which more than
    half changed is computed whole.
    """
    inputs, changed = moving(family)
    frames, patches = changed.shape
    computed = changed.clone()
    computed[1:] |= changed[:-1] & (torch.arange(1, frames) > 1)[:, None]
    computed |= computed.float().mean(1, keepdim=True) > 0.5
    assert 0.3 < computed[1:].float().mean() < 0.8
    _, _, plain = seen(family, inputs)
    _, record, reused = seen(family, inputs, **PIXELS)
    order = family_order(family, patches)
    computed = computed[:, order]
    wanted = plain.view(frames, patches, -1).clone()
    for frame in range(1, frames):
        wanted[frame][~computed[frame]] = wanted[frame - 1][~computed[frame]]
    torch.testing.assert_close(reused.view_as(wanted), wanted, atol=2e-5, rtol=1e-4)
    depth = len(layers_of(family, family.model()))
    share = computed.float().mean().item()
    assert record.tower_computed == pytest.approx((share * (depth - 1) + 1) / depth, abs=1e-5)


def family_order(family, patches):
    """A frame's patches in the order of the tower's states."""
    if family.name != "qwen2_5_vl":
        return torch.arange(patches)
    tower = family.tower(family.model())
    side = tower.window_size // tower.spatial_merge_size // tower.patch_size
    tokens = window_order(3, 3, side)
    return (tokens[:, None] * 4 + torch.arange(4)).flatten()


def test_still_videos_cost_one_frame_and_change_nothing(family):
    inputs = family.pixels(1, 4)
    frame = inputs["pixel_values_videos"].view(4, -1)
    frame[1:] = frame[:1].clone()
    inputs |= family.prompt([5, *family.video(4), 6])
    plain, whole, _ = seen(family, inputs)
    found, record, _ = seen(family, inputs, **PIXELS)
    depth = len(layers_of(family, family.model()))
    assert whole.tower_computed == 1
    assert record.tower_computed == pytest.approx(((depth - 1) / 4 + 1) / depth)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["noise", "one frame", "each frame whole", "a threshold of 0"])
def test_what_cannot_be_reused_is_the_whole_tower(family, kind):
    frames = 1 if kind == "one frame" else 5
    if kind in ("noise", "one frame"):
        inputs = family.pixels(1, frames)
        torch.manual_seed(0)
        inputs["pixel_values_videos"] = torch.randn_like(inputs["pixel_values_videos"])
        inputs |= family.prompt([5, *family.video(frames), 6])
    else:
        inputs, _ = moving(family, frames)
    more = {"each frame whole": {"tower_reuse_interval": 1}, "a threshold of 0": {"tower_reuse_threshold": 0}}
    if kind == "a threshold of 0":
        inputs["pixel_values_videos"] += 1e-3 * torch.arange(len(inputs["pixel_values_videos"].flatten())).view_as(
            inputs["pixel_values_videos"]
        )
    plain, _, _ = seen(family, inputs)
    found, record, _ = seen(family, inputs, **PIXELS, **more.get(kind, {}))
    assert record.tower_computed == 1
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_stc_computes_the_share_that_it_is_told():
    """With all patches of a frame it is the whole tower; with less than one it computes one."""
    family = FAMILIES["llava_onevision"]
    inputs, changed = moving(family)
    stc = {"tower_reuse": "stc", "tower_reuse_layers": 1.0}
    plain, _, _ = seen(family, inputs)
    whole, record, _ = seen(family, inputs, **stc, tower_reuse_ratio=1.0)
    torch.testing.assert_close(whole, plain, atol=1e-4, rtol=1e-4)
    assert record.tower_computed == pytest.approx(1)
    _, none, _ = seen(family, inputs, **stc, tower_reuse_ratio=1e-6)
    _, one, _ = seen(family, inputs, **stc, tower_reuse_ratio=1.01 / changed.shape[1])
    assert none.tower_computed == one.tower_computed < 1


def test_images_in_the_prompt_are_encoded_whole(family):
    inputs, _ = moving(family, 4)
    inputs |= family.prompt([5, *family.image, 7, *family.video(4), 6]) | family.images()
    model = family.model()
    embed = []
    for settings in ({}, PIXELS):
        with torch.no_grad(), Uniform(**WHOLE | settings)(model):
            seam = model.generate.seam
            embed.append(seam.family.image_features(inputs))
    assert torch.equal(*embed)
    found, record, _ = seen(family, inputs, **PIXELS)
    assert found.isfinite().all() and record.tower_computed < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family, dtype):
    model = family.model(dtype)
    inputs, _ = moving(family, 4)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)
    with torch.no_grad(), Uniform(retention_ratio=0.5, **PIXELS)(model) as session:
        assert model(**inputs).logits.isfinite().all()
    assert 0.5 < session.videos[0].tower_computed < 1


def test_two_videos_in_a_batch_are_two(family):
    """What is reused of a video is the same in any batch."""
    inputs, _ = moving(family, 4)
    alone, _, _ = seen(family, inputs, **PIXELS)
    other = family.pixels(1, 4, seed=9)
    both = {name: torch.cat([inputs[name], other[name]]) for name in other}
    row = [5, *family.video(4), 6]
    found, _, _ = seen(family, both | family.prompt(row, row), **PIXELS)
    torch.testing.assert_close(found[:1], alone, atol=1e-4, rtol=1e-4)


def test_resolutions_in_one_batch():
    family = FAMILIES["qwen2_5_vl"]
    inputs = tiny_qwen.video_inputs((4, 6, 6), (3, 8, 4))
    rows = [[tiny_qwen.START, *[tiny_llava.VIDEO] * n, tiny_qwen.END] for n in (36, 24)]
    with torch.no_grad(), Uniform(retention_ratio=0.5, **PIXELS)(family.model()) as session:
        family.model()(**inputs, **family.prompt(*rows))
    assert [video.tokens_after for video in session.videos] == [18, 12]


@pytest.mark.parametrize("height, width, window", [(4, 8, [0, 1, 4, 5]), (8, 4, [0, 1, 2, 3])])
def test_what_moves_in_one_window_leaves_the_others(height, width, window):
    """Of frames that are no squares, in the first block alone: there windows do not see each other, so reuse is exact.

    window: the tokens of 2 x 2 that move in every frame; half of the frame, so that it is not computed whole.
    """
    family = FAMILIES["qwen2_5_vl"]
    inputs = tiny_qwen.video_inputs((4, height, width))
    tokens = inputs["pixel_values_videos"].view(4, 8, -1)
    tokens[1:] = tokens[:1].clone()
    tokens[:, window] += torch.arange(4.0)[:, None, None]
    inputs |= family.prompt([tiny_qwen.START, *[tiny_llava.VIDEO] * 32, tiny_qwen.END])
    plain, _, _ = seen(family, inputs)
    found, record, _ = seen(family, inputs, tower_reuse="pixels")
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
    assert record.tower_computed == pytest.approx(1 - (3 * 4 / 32) / 3)


@pytest.mark.parametrize("method", ["pixels", "stc"])
def test_nan_in_a_frame_stays_there(method):
    family = FAMILIES["llava_onevision"]
    model = family.model()
    inputs, _ = moving(family, 8)
    inputs["pixel_values_videos"][0, 3, 0, 2, 2] = math.nan
    with Uniform(tower_reuse=method, tower_reuse_layers=1.0)(model), torch.no_grad():
        (parts,) = model.generate.seam.family.encode(inputs)
        with pytest.raises(ValueError, match="features must be finite"):
            model(**inputs)
    finite = parts["features"].isfinite().flatten(1).all(1).tolist()
    assert finite == [frame != 3 for frame in range(8)]


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("reused", ["pixels", "stc"])
def test_every_method_takes_it(name, reused):
    family = FAMILIES["llava_onevision"]
    inputs, _ = moving(family, 6)
    inputs["video_timestamps"] = [torch.arange(6.0)]
    if name == "earlytom":
        with pytest.raises(ValueError, match="tower_reuse"):
            REGISTRY[name](tower_reuse=reused)
        return
    pruner = tiny_llava.make_pruner(name, 0.4, tower_reuse=reused)
    with torch.no_grad(), pruner(family.model()) as session:
        assert family.model()(**inputs).logits.isfinite().all()
    assert session.videos[0].tower_computed < 1 or reused == "pixels"  # a third of two layers is none
    with torch.no_grad(), tiny_llava.make_pruner(name, 0.4)(family.model()) as session:
        family.model()(**inputs)
    assert session.videos[0].tower_computed == 1


def test_earlytom_in_a_model(tmp_path):
    """Indices, records and times are those of the video's own frames; the tower does less."""
    family = FAMILIES["llava_onevision"]
    model = tiny_llava.build_model(tmp_path, num_hidden_layers=4)
    inputs, _ = moving(family, 8)
    inputs["video_timestamps"] = [torch.arange(8.0)]
    with (
        torch.no_grad(),
        EarlyTom(retention_ratio=0.3, similarity_threshold=0.1, prune_layers=(0, 1))(model) as session,
    ):
        model(**inputs)
        (parts,) = model.generate.seam.family.encode(inputs)
    (video,) = session.videos
    gone = (parts["frame_groups"] < 0).nonzero()[:, 0].tolist()
    assert gone and video.frames == 8 and video.tokens_before == 72
    assert not set((video.indices // 9).tolist()) & set(gone)
    assert 0.25 <= video.tower_computed < 1
    with torch.no_grad(), EarlyTom(retention_ratio=1.0, positions="transformers")(model):
        whole = model(**inputs).logits
    del inputs["video_timestamps"]
    assert torch.equal(whole, model(**inputs).logits)


def test_what_is_not_known_is_refused(tmp_path):
    model = tiny_llava.build_model(tmp_path)
    with (
        pytest.raises(ValueError, match=r"layers of this vision tower, .* each from 0 to 1"),
        EarlyTom(prune_layers=(0, 2))(model),
    ):
        pass
    model.model.vision_tower.encoder.layers[1] = nn.Identity()
    with (
        pytest.raises(TypeError, match="does not know the layers of this tower, Identity"),
        Uniform(tower_reuse="pixels")(model),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"tower_reuse='stc' is published for SigLIP towers; Qwen2\.5-VL has"),
        Uniform(tower_reuse="stc")(FAMILIES["qwen2_5_vl"].model()),
    ):
        pass
    for name in {*FAMILIES} - {*REUSING}:
        with (
            pytest.raises(TypeError, match="tower_reuse does not know the vision tower of "),
            Uniform(tower_reuse="pixels")(FAMILIES[name].model()),
        ):
            pass


@pytest.mark.parametrize("pruner", [Uniform(**PIXELS), EarlyTom(positions="transformers")])
def test_checkpoints_and_spread_towers_are_refused(tmp_path, pruner):
    model = tiny_llava.build_model(tmp_path)
    inputs, _ = moving(FAMILIES["llava_onevision"], 4)
    inputs["video_timestamps"] = [torch.arange(4.0)]
    model.gradient_checkpointing_enable()
    model.train()
    with pruner(model), pytest.raises(ValueError, match="switch gradient checkpointing off"):
        model(**inputs)
    model.eval()
    with pruner(model):
        assert model(**inputs).logits.isfinite().all()
    if pruner.tower_reuse is not None:
        model.model.vision_tower.encoder.layers[0]._hf_hook = object()
        with pytest.raises(ValueError, match="with a vision tower that accelerate spreads over devices"), pruner(model):
            pass


@pytest.mark.parametrize("settings, message", [
    ({"tower_reuse": "often"}, "tower_reuse = 'often': expected one of 'pixels', 'stc' or None"),
    ({"tower_reuse": False}, "tower_reuse = False"),
    ({"tower_reuse_layers": 1.5}, "tower_reuse_layers = 1.5: expected a finite number in"),
    ({"tower_reuse_threshold": -0.1}, "tower_reuse_threshold = -0.1"),
    ({"tower_reuse_interval": 0}, "tower_reuse_interval = 0: expected an integer of at least 1"),
    ({"tower_reuse_ratio": 0.0}, "tower_reuse_ratio = 0.0"),
])  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Uniform(**settings)
