"""What only the Qwen-VL families have: packed videos of any shape, the saliency of their last vision block, times."""

import itertools
import math

import pytest
import torch
from families import FAMILIES, Qwen3Moe, Spy, make_pruner, outputs
from test_forward import by_hand
from tiny_qwen import END, START, VIDEO, build_model, video_inputs

from tango.models import attach
from tango.models.attention import SALIENCIES
from tango.models.qwen2_5_vl import window_order
from tango.models.segments import NAME, attend_within_segments, segments_together

QWEN = ("qwen2_5_vl", "qwen3_vl")
GRIDS = [(4, 6, 6), (3, 4, 10), (1, 2, 2), (2, 20, 2)]  # patches; portrait, strips, a single token


@pytest.fixture(params=QWEN)
def family(request):
    return FAMILIES[request.param]


def video(family, grid):
    """Ids of a video of t x h x w patches."""
    frames, tokens = grid[0], grid[1] * grid[2] // 4
    if family.name == "qwen2_5_vl":
        return [START, *[VIDEO] * (frames * tokens), END]
    return [token for frame in range(frames) for token in (20 + frame, START, *[VIDEO] * tokens, END)]


def several(family, dtype=torch.float32):
    """A prompt with a video of every shape."""
    row = [5, *[token for grid in GRIDS for token in (*video(family, grid), 7)], 8]
    return family.prompt(row) | video_inputs(*GRIDS, dtype=dtype)


def given(model, inputs, *, wanted=("saliency",), **settings):
    """What a pruner is given for each video."""
    spy = Spy(indices=[0], wanted=frozenset(wanted), **settings)
    with torch.no_grad(), attach(model, spy):
        model(**inputs)
    return spy.calls


def rotated(vector, angles):
    """A head's query or key, pairs (i, i + d/2) turned by the angle of each."""
    half = len(vector) // 2
    out = vector.clone()
    for index, angle in enumerate(angles):
        first, second = vector[index], vector[index + half]
        out[index] = first * math.cos(angle) - second * math.sin(angle)
        out[index + half] = second * math.cos(angle) + first * math.sin(angle)
    return out


@torch.no_grad()
def slow_saliency(model, pixels, grid):
    """(t, L) of one video by the formula: patch by patch, in raster order of patches, from the last block's input."""
    tower, (frames, height, width) = model.model.visual, grid
    states = []
    hook = tower.blocks[-1].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    tower(pixels, grid_thw=torch.tensor([grid]))
    hook.remove()
    tokens = states[0].view(frames * height * width // 4, 4, -1)
    if hasattr(tower, "window_size"):  # tokens of a frame as the tower has them: windows of 2 x 2 tokens
        places = []
        for frame in range(frames):
            for top in range(0, height // 2, 2):
                for left in range(0, width // 2, 2):
                    rows, columns = range(top, min(top + 2, height // 2)), range(left, min(left + 2, width // 2))
                    places += [(frame * (height // 2) + r) * (width // 2) + c for r in rows for c in columns]
        raster = torch.zeros_like(tokens)
        raster[torch.tensor(places)] = tokens
        tokens = raster
    block = tower.blocks[-1]
    heads = block.attn.num_heads
    size = tokens.shape[-1] // heads
    frequencies = [10000 ** (-2 * index / (size // 2)) for index in range(size // 4)]
    weight, bias = block.attn.qkv.weight.float(), block.attn.qkv.bias.float()
    out = torch.zeros(frames, height * width // 4)
    for frame, patches in enumerate(tokens.float().view(frames, -1, 4, tokens.shape[-1])):
        normed = block.norm1.float()(patches)
        queries = [[] for _ in range(heads)]
        keys = [[] for _ in range(heads)]
        for token in range(len(patches)):
            row, column = token // (width // 2), token % (width // 2)
            sums = [0] * heads
            for patch in range(4):
                y, x = 2 * row + patch // 2, 2 * column + patch % 2
                angles = [y * f for f in frequencies] + [x * f for f in frequencies]
                query, key, _ = (weight @ normed[token, patch] + bias).view(3, heads, size)
                for head in range(heads):
                    queries[head].append(rotated(query[head], angles))
                    sums[head] = sums[head] + rotated(key[head], angles)
            for head in range(heads):
                keys[head].append(sums[head] / 4)
        for head in range(heads):
            mean = sum(queries[head]) / len(queries[head])
            scores = torch.stack([mean @ key for key in keys[head]]) / size**0.5
            out[frame] += torch.softmax(scores, 0) / heads
    return out


def test_saliency(family, tmp_path):
    model, inputs = family.build(tmp_path), several(family)
    pixels = inputs["pixel_values_videos"].split([math.prod(grid) for grid in GRIDS])
    for call, packed, grid in zip(given(model, inputs), pixels, GRIDS, strict=True):
        assert call["grid"] == (grid[1] // 2, grid[2] // 2)
        expected = slow_saliency(model, packed, grid)
        torch.testing.assert_close(call["saliency"], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(call["saliency"].sum(1), torch.ones(grid[0]))
        assert expected.shape[1] == 1 or expected.std() > 1e-3  # or the comparison would tell little


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_is_near(family, attention):
    expected = given(family.model(), several(family))
    half = given(family.model(torch.bfloat16, attention), several(family, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = given(family.model(), several(family))
    for one, two, three in zip(expected, half, cast, strict=True):
        assert two["saliency"].dtype == three["saliency"].dtype == torch.float32
        torch.testing.assert_close(two["saliency"], one["saliency"], atol=0.03, rtol=0.1)
        torch.testing.assert_close(three["saliency"], one["saliency"], atol=0.03, rtol=0.1)


def test_features_are_the_mergers(family):
    model, inputs = family.model(), several(family)
    with torch.no_grad():
        output = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    for call, features, grid in zip(given(model, inputs, wanted=()), output.pooler_output, GRIDS, strict=True):
        assert call["features"].shape == (grid[0], grid[1] * grid[2] // 4, 32)
        torch.testing.assert_close(call["features"].flatten(0, 1), features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(3, 3, 2), (8, 8, 4), (5, 9, 4), (1, 7, 4), (6, 1, 4)])
def test_window_order(height, width, side):
    from transformers.vision_utils import get_vision_window_index

    index, _ = get_vision_window_index(torch.tensor([[2, 2 * height, 2 * width]]), 2, side * 2 * 14, 14)
    length = height * width
    assert window_order(height, width, side).tolist() == index[:length].tolist()
    assert (index[length:] - length).tolist() == index[:length].tolist()


def test_only_what_is_asked_for_is_computed(family, monkeypatch):
    model, inputs = family.model(), several(family)
    hooks = [dict(module._forward_hooks) for module in model.modules()]  # transformers leaves some of its own
    monkeypatch.setattr("tango.models.packed.recorded_attention", lambda *_: pytest.fail("not needed"))
    assert given(model, inputs, wanted=("segment_features", "key"))[0]["segment_features"] is None
    monkeypatch.undo()
    monkeypatch.setitem(SALIENCIES, "received_attention", lambda *_: pytest.fail("not needed"))
    given(model, inputs)
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


# -- time --------------------------------------------------------------------------------------------------------


def test_times(family):
    """One a frame, one a sampled frame of which the last may be missing, or from the interval of the frames."""
    model = family.model()
    inputs = family.prompt([5, *video(family, (3, 2, 4)), 7]) | video_inputs((3, 2, 4))

    def told(**settings):
        return given(model, inputs | settings)[0]["timestamps"].tolist()

    assert told() == [0, 1, 2]
    assert told(video_timestamps=[[0, 3, 5]]) == [0, 3, 5]
    assert told(video_timestamps=[torch.tensor([0, 1, 2, 4, 6, 7.0])]) == [0.5, 3, 6.5]
    assert told(video_timestamps=[[0, 1, 2, 4, 6]]) == [0.5, 3, 6]
    metadata = [{"fps": 10.0, "frames_indices": [0, 5, 10, 20, 30, 30]}]
    assert told(video_metadata=metadata) == [0.25, 1.5, 3]
    for wrong in ([0, 1], [0, 1, 2, 3], list(range(7))):
        with pytest.raises(ValueError, match=rf"{len(wrong)} timestamps for a video of 3 frames of 2 sampled ones"):
            told(video_timestamps=[wrong])
    if family.name == "qwen2_5_vl":
        for interval in ([0.5], torch.tensor([0.5])):
            assert told(second_per_grid_ts=interval) == [0, 0.5, 1]
            assert told(second_per_grid_ts=interval, video_timestamps=[[0, 3, 5]]) == [0, 3, 5]
        with pytest.raises(ValueError, match="second_per_grid_ts has 2 entries for 1 videos"):
            told(second_per_grid_ts=[1, 1])


# -- shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 2, 2), (5, 2, 2), (2, 2, 60), (2, 40, 2), (3, 10, 4), (1, 6, 6)])
@pytest.mark.parametrize("method", ["random", "uniform", "topk", "tango"])
def test_shapes(family, grid, method):
    model, tokens = family.model(), grid[0] * grid[1] * grid[2] // 4
    inputs = family.prompt([5, *video(family, grid), 7]) | video_inputs(grid)
    expected = outputs(model, inputs, 2)
    for ratio in (0.01, 0.3, 1.0):
        with make_pruner(method, ratio)(model) as session:
            actual = outputs(model, inputs, 2)
        (record,) = session.videos
        assert (record.frames, record.grid, record.tokens_before) == (grid[0], (grid[1] // 2, grid[2] // 2), tokens)
        assert 1 <= record.tokens_after <= tokens
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_malformed_grids(family):
    model = family.model()
    inputs = family.prompt([5, *video(family, (4, 6, 6)), 7]) | video_inputs((4, 6, 6))
    cases = (
        (None, "needs video_grid_thw"),
        (torch.tensor([4, 6, 6]), r"shape \(videos, 3\), got \[4, 6, 6\]"),
        (torch.tensor([[0, 6, 6]]), r"must be t, h, w .* got \[\[0, 6, 6\]\]"),
        (torch.tensor([[4, 9, 4]]), "h and w must be multiples of 2"),
        (torch.tensor([[5, 6, 6]]), r"shape \(144, 96\); video_grid_thw \[\[5, 6, 6\]\] needs 180 rows"),
        (torch.tensor([[2, 6, 6], [2, 6, 6]]), None),
    )
    with torch.no_grad(), make_pruner("uniform", 0.3)(model):
        for grids, message in cases:
            if message is None:
                assert model(**inputs).logits is not None
                continue
            with pytest.raises(ValueError, match=message):
                model(**(inputs | {"video_grid_thw": grids}))


def test_mixture_of_experts():
    """Qwen3-VL's sister goes through the same family."""
    family = Qwen3Moe()
    model, row = family.model(), [5, *family.video(), 7, *family.image, 8]
    inputs = family.prompt(row) | family.pixels() | family.images()
    expected = outputs(model, inputs)
    with make_pruner("tango", 1.0)(model):
        for actual, whole in zip(outputs(model, inputs), expected, strict=True):
            assert torch.equal(actual, whole)
    with torch.no_grad(), attach(model, Spy([2, 11, 30])):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, by_hand(family, model, inputs, family.columns(row, [2, 11, 30])))


def test_router_logits():
    """Of layers that all see the same tokens; refused where later ones see fewer, for transformers makes one loss."""
    family = Qwen3Moe()
    model, inputs = family.model(), family.prompt([5, *family.video(), 7]) | family.pixels()
    with torch.no_grad(), attach(model, Spy([2, 11])):
        assert model(**inputs, output_router_logits=True).aux_loss.isfinite()
    with torch.no_grad(), make_pruner("fastv", 0.75)(model):
        for ask in (model, lambda **call: model.generate(**call, max_new_tokens=2)):
            with pytest.raises(ValueError, match="output_router_logits does not work with pruning inside"):
                ask(**inputs, output_router_logits=True)
            assert ask(**inputs, output_router_logits=False) is not None


def test_interleaved_rotation_is_the_models_own(tmp_path):
    """Pruning leaves rotation to the model: with other sections of M-RoPE the answer of the shorter prompt follows."""
    for sections in ([4, 2, 2], [2, 3, 3]):
        model = build_model(tmp_path, kind="qwen3_vl", sections=sections)
        family = FAMILIES["qwen3_vl"]
        row = [5, *family.video(), 7, 8]
        inputs = family.prompt(row) | family.pixels()
        with torch.no_grad(), attach(model, Spy([2, 11, 30])):
            logits = model(**inputs).logits
        torch.testing.assert_close(logits, by_hand(family, model, inputs, family.columns(row, [2, 11, 30])))


@pytest.fixture
def attentions(monkeypatch):
    """Shapes of the queries of every call of scaled_dot_product_attention."""
    calls, real = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        calls.append(query.shape)
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return calls


@torch.no_grad()
def test_segments_of_one_length_in_one_call(family, attentions):
    tower, inputs = family.model().model.visual, several(family)
    pixels, grids = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    expected = tower(pixels, grid_thw=grids).pooler_output
    lengths = {shape[2] for shape in attentions}
    alone = len(attentions)
    attentions.clear()
    with segments_together(tower):
        found = tower(pixels, grid_thw=grids).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert {shape[2] for shape in attentions} == lengths
    assert len(lengths) > 1
    assert len(attentions) <= len(lengths) * len(tower.blocks) < alone / 2
    attentions.clear()
    assert torch.equal(tower(pixels, grid_thw=grids).pooler_output, expected)  # the tower is as it was
    assert len(attentions) == alone


@torch.no_grad()
def test_as_many_calls_for_any_number_of_frames(family, attentions):
    tower, counts = family.model().model.visual, []
    for frames in (1, 7):
        inputs = video_inputs((frames, 6, 10))
        attentions.clear()
        with segments_together(tower):
            tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
        counts.append(len(attentions))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_the_tower_of_a_pruned_model(family, attentions, ratio):
    """Segments together, but at a ratio of 1 the model's own loop: to the bit its own result."""
    grid = (6, 6, 6)
    model, inputs = family.model(), family.prompt([5, *video(family, grid), 8]) | video_inputs(grid)
    tower = model.model.visual
    with torch.no_grad():
        tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
        alone = len(attentions)
        attentions.clear()
        with attach(model, make_pruner("topk", ratio)):
            model(**inputs)
    of_tower = len(attentions) - model.config.text_config.num_hidden_layers
    assert of_tower == alone if ratio == 1 else of_tower < alone / 2


def test_only_sdpa_is_replaced_and_only_for_a_while(family):
    tower = family.model(attention="eager").model.visual
    with segments_together(tower):
        assert tower.config._attn_implementation == "eager"
    tower = family.model().model.visual

    def fail():
        with segments_together(tower):
            with segments_together(tower):
                assert tower.config._attn_implementation == NAME
            assert tower.config._attn_implementation == NAME
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert tower.config._attn_implementation == "sdpa"


def test_attention_within_segments_of_any_length():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 14, 8, generator=generator)
    bounds = torch.tensor([0, 4, 5, 9, 12, 13, 14], dtype=torch.int32)
    for _ in range(2):
        found, nothing = attend_within_segments(None, query, key, value, None, scaling=0.3, cu_seq_lens_q=bounds)
        assert nothing is None
        assert found.shape == (1, 14, 2, 8)
        for start, end in itertools.pairwise(bounds.tolist()):
            part = slice(start, end)
            weights = (0.3 * query[0, :, part] @ key[0, :, part].mT).softmax(-1)
            torch.testing.assert_close(found[0, part], (weights @ value[0, :, part]).transpose(0, 1))
