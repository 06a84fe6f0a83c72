"""LLaVA-Video: the class by itself, its placeholders and newlines, and what pruning leaves of them."""

from pathlib import Path

import pytest
import torch
import transformers
from decoder_by_hand import Drop, run
from packaging.version import Version
from tiny_llava import PAD, VIDEO, build_model, make_pruner, pixels, prompt
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForImageTextToText

from tango.models import attach, family_of
from tango.models.family import PlacedVideo
from tango.models.llava_video import (
    FAMILY,
    LlavaVideoForConditionalGeneration,
    LlavaVideoModel,
    LlavaVideoProcessor,
)
from tango.pruners import Pruned, Pruner, Tango, VideoTokens

SIDE = 3  # 7 x 7 patches, of which 6 x 6 are pooled
TOKENS = SIDE * SIDE


class Spy(Pruner):
    """Keeps chosen tokens and notes what it was given."""

    name = "spy"
    needs = frozenset({"saliency", "segment_features"})

    def __init__(self, indices, **settings):
        super().__init__(**settings)
        self.indices, self.given = torch.tensor(indices), None

    def _prune(self, video):
        self.given = {"features": video.features, "saliency": video.saliency, "grid": video.grid}
        return Pruned(self.indices, video.features.flatten(0, 1)[self.indices], torch.tensor([len(video.features)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("llava-video")


@pytest.fixture(scope="module")
def model(folder):
    return build_model(folder, model_class=LlavaVideoForConditionalGeneration, image_size=56)


def video(frames=4):
    return [VIDEO] * (frames * SIDE * (SIDE + 1))


def example(*rows, **settings):
    rows = rows or ([5, 6, *video(), 7, 8],)
    count = sum(row.count(VIDEO) for row in rows) // len(video())
    return prompt(*rows) | {"pixel_values_videos": pixels(count, size=56)} | settings


def pooled(patches):
    """(F, 49, D) to (F, 9, D) by the means of 2 x 2 patches, one after another."""
    grid = patches.view(len(patches), 7, 7, -1)
    tokens = [
        grid[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten(1, 2).mean(1) for h in range(SIDE) for w in range(SIDE)
    ]
    return torch.stack(tokens, 1)


def features_of(model, frames):
    """Tokens (F, 9, D) of frames (F, C, H, W), step by step."""
    states = model.model.vision_tower(frames, output_hidden_states=True).hidden_states[-1]
    return pooled(model.model.multi_modal_projector(states))


def spliced(model, inputs, chosen, newlines):
    """Logits of the prompt of `example()` with chosen tokens and newlines: chosen (row of the frame -> indices)."""
    tokens = features_of(model, inputs["pixel_values_videos"][0]).flatten(0, 1)
    newline = model.model.image_newline[None]
    parts = [torch.cat((tokens[indices], newline)) for indices in chosen]
    assert len(parts) == newlines
    text = model.get_input_embeddings()(inputs["input_ids"][0])
    embeds = torch.cat((text[:2], *parts, text[-2:]))[None]
    return model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long)).logits


@torch.no_grad()
def test_the_class_by_itself(model):
    inputs = example()
    rows = [list(range(SIDE * row, SIDE * row + SIDE)) for row in range(4 * SIDE)]
    actual = model(**inputs).logits
    torch.testing.assert_close(actual, spliced(model, inputs, rows, 12), atol=1e-5, rtol=1e-5)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    loss = model(**inputs, labels=labels).loss
    torch.testing.assert_close(loss, cross_entropy(actual[0, -3:-1], labels[0, -2:]))
    with pytest.raises(ValueError, match="do not match"):
        model(**prompt([5, *video()[1:]]), pixel_values_videos=inputs["pixel_values_videos"])


@torch.no_grad()
def test_two_videos_by_itself(model):
    """A batch of two prompts gives what each gives alone."""
    inputs = example([5, *video(), 7, 8], [9, *video(), 7, 8])
    together = model(**inputs).logits
    for row in range(2):
        alone = model(inputs["input_ids"][row : row + 1], pixel_values_videos=inputs["pixel_values_videos"][[row]])
        torch.testing.assert_close(together[row], alone.logits[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_video_features(model):
    frames = pixels(2, size=56)
    output = model.get_video_features(frames)
    # Since 5.18 the features end with the newline that LlavaOnevisionModel.forward() added before.
    length = 4 * SIDE * (SIDE + 1) - (Version(transformers.__version__) < Version("5.18"))
    assert output.pooler_output.shape == (2, length, 32)
    assert torch.equal(model.model.get_video_features(frames, return_dict=False)[-1], output.pooler_output)


def test_images_are_as_in_llava_onevision(model, tmp_path, monkeypatch):
    other = build_model(tmp_path, image_size=56)
    image, sizes = torch.randn(1, 3, 3, 56, 56), torch.tensor([[50, 110]])
    for m in (model, other):
        monkeypatch.setattr(m.config, "image_grid_pinpoints", [[56, 56], [56, 112]])
    with torch.no_grad():
        ours, theirs = (m.get_image_features(image, sizes).pooler_output[0] for m in (model, other))
    assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("indices", "rows"),
    [
        ([0, 2, 4, 9 + 8, 27 + 1], [[0, 2], [4], [17], [28]]),  # each frame starts a row of its own
        ([28, 4, 2, 17, 0], [[0, 2], [4], [17], [28]]),  # whatever order a method gives them
        ([35], [[35]]),
    ],
)
def test_newlines_follow_the_rows_that_are_left(model, indices, rows):
    inputs, spy = example(), Spy(indices)
    with attach(model, spy) as session:
        actual = model(**inputs).logits
    torch.testing.assert_close(actual, spliced(model, inputs, rows, len(rows)), atol=1e-5, rtol=1e-5)
    (record,) = session.videos
    assert (record.tokens_before, record.tokens_after, record.grid) == (36, len(indices), (3, 3))
    assert record.indices.tolist() == indices  # newlines are not counted


def test_columns_of_tokens_and_newlines(model):
    """Each embedding has the column of its own placeholder, newlines those of the newlines."""
    family = FAMILY(model, make_pruner("uniform", 0.5))
    columns = torch.arange(24) + 100
    grid = (SIDE, SIDE)
    video = PlacedVideo(0, columns, VideoTokens(torch.randn(2, TOKENS, 32), grid), None, 1.0)
    for indices in ([1, 5, 12, 13, 14], [13, 1, 14, 5, 12], list(range(18))):
        features = torch.randn(len(indices), 32)
        edit = family.lay_out(video, Pruned(torch.tensor(indices), features, torch.tensor([2])))
        expected, column = [], 100
        for row in range(6):
            held = sorted(index for index in indices if index // SIDE == row)
            expected += [(column + index % SIDE, features[indices.index(index)]) for index in held]
            expected += [(column + SIDE, model.model.image_newline)] * bool(held)
            column += SIDE + 1
        assert edit.after.tolist() == [place for place, _ in expected]
        assert edit.visual.tolist() == [vector is not model.model.image_newline for _, vector in expected]
        assert torch.equal(edit.embeddings, torch.stack([vector for _, vector in expected]))


@torch.no_grad()
def test_what_a_pruner_is_given(model):
    inputs, spy = example(), Spy([0])
    with attach(model, spy):
        model(**inputs)
    frames = inputs["pixel_values_videos"][0]
    assert spy.given["grid"] == (SIDE, SIDE)
    torch.testing.assert_close(spy.given["features"], features_of(model, frames), atol=1e-6, rtol=1e-5)
    head = FAMILY(model, spy).head
    states = model.model.vision_tower(frames, output_hidden_states=True).hidden_states[-1]
    _, weights = head.attention(states)
    torch.testing.assert_close(spy.given["saliency"], pooled(weights.mean(1)[..., None])[..., 0])


def test_sinks(model):
    family = FAMILY(model, make_pruner("uniform", 0.5))
    assert family.sinks == {(13, 13): (26, 157, 11)}
    published = AutoConfig.for_model("llava_video")
    assert FAMILY.layout(published, 64)[:2] == (13, 64 * 13 * 14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_kept_is_equal_and_nothing_stays_behind(folder, dtype):
    model = build_model(folder, dtype, model_class=LlavaVideoForConditionalGeneration, image_size=56)
    inputs = example([5, 6, *video(), 7, *video(), 8, 9], [5, *video(), 11, 12])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)

    def outputs():
        with torch.no_grad():
            return model.generate(**inputs, max_new_tokens=5, do_sample=False), model(**inputs).logits

    expected = outputs()
    with make_pruner("tango", 1.0)(model):
        kept = outputs()
    with make_pruner("tango", 0.2)(model) as session:
        pruned = outputs()
        alone = model.generate(
            input_ids=inputs["input_ids"][1:, -len(video()) - 3 :],
            pixel_values_videos=inputs["pixel_values_videos"][2:],
            max_new_tokens=5,
            do_sample=False,
        )
    for ours in (kept, outputs()):
        for value, wanted in zip(ours, expected, strict=True):
            assert torch.equal(value, wanted)
    assert pruned[1].shape[1] < expected[1].shape[1]
    assert not torch.equal(pruned[0], expected[0])
    if dtype == torch.float32:
        assert torch.equal(pruned[0][1, -5:], alone[0, -5:])
    assert len(session.videos) == 1


@torch.no_grad()
def test_inside_the_language_model(tmp_path):
    """A video's span is all that was spliced in, newlines included; records count its tokens."""
    model = build_model(tmp_path, layers=4, model_class=LlavaVideoForConditionalGeneration, image_size=56)
    inputs, embeds = example(), []
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(lambda _, args, kw: embeds.append(kw["inputs_embeds"]), with_kwargs=True)
    with attach(model, Tango(retention_ratio=0.4, pruned_layer=2)) as session:
        logits = model(**inputs).logits
    hook.remove()
    (record,) = session.videos
    length = embeds[0].shape[1]
    rows = len({index // SIDE for index in record.indices.tolist()})
    span = list(range(2, length - 2))
    assert len(span) == record.tokens_after + rows
    drop = Drop(2, 0.5, length, [span], "mean")
    expected = model.lm_head(run(decoder, embeds[0][0], torch.arange(length)[None], drop))
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)
    newlines = (embeds[0][0] == model.model.image_newline).all(1)
    assert int(newlines.sum()) == rows
    assert record.tokens_in_llm == sum(not newlines[place] for place in drop.left[0]) < record.tokens_after


def test_a_saved_model_comes_back_as_its_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is LlavaVideoForConditionalGeneration and type(loaded.model) is LlavaVideoModel
    assert family_of(loaded) is FAMILY
    inputs = example()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_the_sentence_on_time():
    assert LlavaVideoProcessor.time_instruction(12.345, [0, 4.1, 12.306]) == (
        "The video lasts for 12.35 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,4.10s,12.31s.Please answer the following questions related to this video."
    ).replace("12.35", f"{12.345:.2f}")
    assert LlavaVideoProcessor.time_instruction(3, [0, 1.5], spaces=False) == (
        "The video lasts for 3.00 seconds,and 2 frames are uniformly sampled from it.These frames are located at "
        "0.00s,1.50s.Please answer the following questions related to this video."
    )


def test_wrong_placeholders(model):
    inputs = prompt([5, *video()[:-1]]) | {"pixel_values_videos": pixels(1, size=56), "pad_token_id": PAD}
    with make_pruner("tango", 0.5)(model), pytest.raises(ValueError, match="need 48 \\(3 rows of 3 and a newline"):
        model.generate(**inputs)
