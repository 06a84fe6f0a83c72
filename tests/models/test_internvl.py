"""What only InternVL has: tiles of images and frames in one tensor, pixel shuffle, a tower with a class token."""

import warnings

import pytest
import torch
from families import FAMILIES, GRID, TOKENS, Spy, make_pruner, outputs
from tiny_internvl import SIZE, build_model
from tiny_qwen import END, IMAGE, START
from torch.nn import functional as F

from tango.models import attach
from tango.models.internvl import UNTOLD

FAMILY = FAMILIES["internvl"]
KEPT = [30, 2, 11]


@torch.no_grad()
def given(model, inputs, wanted=("saliency", "keys"), **settings):
    """What a pruner is given for each video."""
    spy = Spy(wanted=frozenset(wanted), **settings)
    with attach(model, spy):
        model(**inputs)
    return spy.calls


def patches_of(token):
    """Places in a tile of 6 x 6 patches, after the class token, of the four that pixel shuffle puts into a token."""
    row, column = divmod(token, 3)
    return [1 + (2 * row + y) * 6 + 2 * column + x for y in (0, 1) for x in (0, 1)]


@torch.no_grad()
def test_a_token_is_made_of_its_four_patches(tmp_path):
    """A change to the tower's output in one patch changes the token that patches_of() says, and no other."""
    model = build_model(tmp_path)
    pixels, before = torch.randn(1, 3, SIZE, SIZE), []
    expected = model.model.get_image_features(pixels).pooler_output
    for token in range(TOKENS):
        for patch in patches_of(token):
            hook = model.model.vision_tower.encoder.layer[-1].register_forward_hook(
                lambda _, __, output: output.index_fill(1, torch.tensor([patch]), 3.0)  # noqa: B023
            )
            changed = (model.model.get_image_features(pixels).pooler_output - expected).abs().amax(-1)[0]
            hook.remove()
            before.append(patch)
            assert (changed > 1e-4).nonzero()[:, 0].tolist() == [token]
    assert sorted(before) == list(range(1, 37))


@pytest.mark.parametrize("norms", [{}, {"use_qk_norm": True, "norm_type": "rms_norm"}])
@pytest.mark.parametrize("saliency", ["global_query", "received_attention"])
@torch.no_grad()
def test_saliency_and_keys(tmp_path, saliency, norms):
    """By their formulas, patch by patch, from what the last layer is given; the class token is left out."""
    model, inputs = build_model(tmp_path, **norms), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    (call,) = given(model, inputs, saliency=saliency)
    layer, states = model.model.vision_tower.encoder.layer[-1], []
    hook = layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.model.get_image_features(inputs["pixel_values"])
    hook.remove()
    own, heads, width = layer.attention, 4, 8
    for frame, hidden in enumerate(layer.layernorm_before(states[0])):
        query, key = own.q_proj(hidden), own.k_proj(hidden)
        if norms:  # over all heads together
            norm = [x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key)]
            query, key = norm[0] * own.q_norm.weight, norm[1] * own.k_norm.weight
        query, key = query[1:].view(36, heads, width), key[1:].view(36, heads, width)
        by_token = torch.stack([key[[place - 1 for place in patches_of(token)]].mean(0) for token in range(TOKENS)])
        torch.testing.assert_close(call["keys"][frame], by_token.mean(1), atol=1e-5, rtol=1e-4)
        expected = torch.zeros(TOKENS)
        for head in range(heads):
            if saliency == "global_query":
                scores = by_token[:, head] @ query[:, head].mean(0) / width**0.5
                expected += torch.softmax(scores, 0) / heads
            else:
                received = torch.softmax(query[:, head] @ key[:, head].T / width**0.5, 1).mean(0)
                expected += torch.stack([
                    received[[place - 1 for place in patches_of(token)]].mean() for token in range(TOKENS)
                ]) / heads  # fmt: skip
        torch.testing.assert_close(call["saliency"][frame], expected, atol=1e-6, rtol=1e-4)
        assert expected.std() > 1e-4


def mixed():
    """An image of two tiles, a video, an image of one tile between two videos, the last of two frames."""
    one = [START, *[IMAGE] * TOKENS, END]
    row = [5, *FAMILY.image, 6, *FAMILY.video(), *one, *FAMILY.video(2), 8]
    image, videos = FAMILY.images(1), (FAMILY.pixels(), FAMILY.pixels(frames=2, seed=3))
    first, second = (video["pixel_values"] for video in videos)
    pixels = torch.cat((image["pixel_values"], first, image["pixel_values"][:1], second))
    return row, FAMILY.prompt(row) | {"pixel_values": pixels, "video_frames": [0, 4, 0, 2]}


@torch.no_grad()
def test_videos_are_told_from_images():
    model, (row, inputs) = FAMILY.model(), mixed()
    calls = given(model, inputs, wanted=())
    assert [len(call["features"]) for call in calls] == [4, 2]
    assert all(call["grid"] == GRID for call in calls)
    whole = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(calls[0]["features"], whole[2:6])
    torch.testing.assert_close(calls[1]["features"], whole[7:9])
    # What is left, by hand: all text and images, and of each video the places of the tokens that were kept.
    places = [column for column, token in enumerate(row) if token == IMAGE]
    videos = [places[18:54], places[63:81]]
    dropped = {place for own in videos for index, place in enumerate(own) if index not in (0, 5, 17)}
    columns = [column for column in range(len(row)) if column not in dropped]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    embeds[0, places] = whole.flatten(0, 1)
    decoder = model.model.language_model
    hidden = decoder(inputs_embeds=embeds[:, columns], position_ids=torch.arange(len(columns))[None])
    with attach(model, Spy()):
        found = model(**inputs).logits
    torch.testing.assert_close(found, model.lm_head(hidden.last_hidden_state), atol=1e-5, rtol=1e-5)


def test_positions_without_gaps_and_with():
    """The tokens of the shorter prompt count on from 0; with keep_positions each has its column of the whole prompt."""
    model, row, seen = FAMILY.model(), [5, 6, *FAMILY.video(), 7, 8], []
    inputs = FAMILY.prompt(row) | FAMILY.pixels() | {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1]),
        with_kwargs=True,
    )
    columns = FAMILY.columns(row, sorted(KEPT))
    for keep, expected in ((False, list(range(len(columns)))), (True, columns)):
        seen.clear()
        with attach(model, Spy(sorted(KEPT), keep_positions=keep)):
            model.generate(**inputs)
        after = len(row) if keep else len(columns)
        assert [positions[0].tolist() for positions in seen] == [expected, [after], [after + 1]]
    hook.remove()


def test_where_all_visuals_are_videos_their_times_say_so():
    model, inputs = FAMILY.model(), FAMILY.prompt([5, *FAMILY.video(), *FAMILY.video(2), 7])
    inputs["pixel_values"] = FAMILY.pixels()["pixel_values"][[0, 1, 2, 3, 0, 1]]
    times = [[0.0, 1.0, 2.0, 3.0], [4.0, 6.0]]
    metadata = [{"fps": 2.0, "frames_indices": [0, 2, 4, 6]}, {"fps": 2.0, "frames_indices": [8, 12]}]
    for told in ({"video_timestamps": times}, {"video_metadata": metadata}):
        calls = given(model, inputs | told, wanted=())
        assert [call["timestamps"].tolist() for call in calls] == times


def test_nobody_says_what_is_video():
    """It then is left as it is, with a warning where it might be a video, and none where there is one image."""
    model, inputs = FAMILY.model(), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    del inputs["video_frames"]
    expected = outputs(model, inputs)
    with make_pruner("tango", 0.1)(model) as session:
        with pytest.warns(UserWarning, match="which may be images or frames"):
            found = outputs(model, inputs)
        assert session.videos == [] and all(map(torch.equal, found, expected))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outputs(model, FAMILY.prompt([5, *FAMILY.image, 7]) | FAMILY.images())
    assert UNTOLD.startswith("the prompt has several spans of one tile")


def test_nobody_says_it_in_a_generate_of_the_users_own(tmp_path):
    model, inputs = FAMILY.build(tmp_path), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    del inputs["video_frames"]

    class Own(type(model)):
        def generate(self, question, **settings):
            return super().generate(**question, **settings)

    model.__class__ = Own
    with make_pruner("tango", 0.1)(model):
        with pytest.warns(UserWarning, match="which may be images or frames"):
            model.generate(inputs, max_new_tokens=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the prompt has several spans")
            model.generate(FAMILY.prompt([5, *FAMILY.image, 7]) | FAMILY.images(), max_new_tokens=3)


@pytest.mark.parametrize("change, message", [
    ({"video_frames": [3]}, r"video_frames \[3\] stands for 3 spans of placeholders, and the prompt has 4"),
    ({"video_frames": [0, 0, 3]}, r"stands for 5 spans"),
    ({"pixel_values": torch.zeros(5, 3, SIZE, SIZE)}, "placeholders for 4 tiles, and pixel_values 5"),
    ({"pixel_values": torch.zeros(4, 3, SIZE, 20)}, r"pixel_values has shape \(4, 3, 24, 20\), not"),
    ({"pixel_values": torch.zeros(4, 3, 48, 48)}, "has 9 placeholders from column 3 on, where a frame needs 36"),
    ({"mm_encoder_outputs": {"image": object()}}, "mm_encoder_outputs does not work"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    model, inputs = FAMILY.model(), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    with make_pruner("uniform", 0.3)(model), pytest.raises(ValueError, match=message):
        model.generate(**inputs | change, max_new_tokens=1)


@torch.no_grad()
def test_pruning_inside_the_decoder():
    """InternVL3.5's decoders are Qwen3's: what FastV's scores rank last is gone from layer 1 on."""
    model, inputs = FAMILY.model(attention="eager"), FAMILY.prompt([5, *FAMILY.video(), 7]) | FAMILY.pixels()
    weights = model(**inputs, output_attentions=True).attentions[0][0].mean(0)[-1]
    places = [column for column, token in enumerate(inputs["input_ids"][0].tolist()) if token == IMAGE]
    with make_pruner("fastv", 0.3)(model) as session:
        logits = model(**inputs).logits
    kept = session.videos[0].tokens_in_llm
    stay = {places[index] for index in weights[places].topk(kept).indices.tolist()}
    columns = [column for column in range(logits.shape[1] + len(places) - kept) if column not in {*places} - stay]
    assert logits.shape[1] == len(columns)
    hidden = model(**inputs, output_hidden_states=True).hidden_states[1][:, columns]
    decoder, positions = model.model.language_model, torch.tensor([columns])
    mask = torch.full((len(columns),) * 2, float("-inf")).triu(1)[None, None]
    after = decoder.layers[1](hidden, position_embeddings=decoder.rotary_emb(hidden, positions), attention_mask=mask)
    torch.testing.assert_close(logits, model.lm_head(decoder.norm(after)), atol=1e-4, rtol=1e-4)
    assert F.cosine_similarity(logits, model(**inputs).logits[:, columns], dim=-1).min() < 0.9999
