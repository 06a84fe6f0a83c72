"""forward() under a pruner, what a pruner is given, long and malformed input."""

import pytest
import torch
from tiny_llava import GRID, TOKENS, VIDEO, build_model, make_pruner, pixels, prompt, video
from transformers.video_utils import VideoMetadata

from tango.models import attach
from tango.models.llava_onevision import FRAMES_PER_CALL, SINK_TOKENS
from tango.models.prompt import place
from tango.pruners import Pruned, Pruner, Tango


class Spy(Pruner):
    """Keeps chosen tokens and notes what it was given."""

    name = "spy"
    wanted = frozenset({"key"})

    def __init__(self, indices=(0, 5, 17), wanted=frozenset({"key"}), **settings):
        super().__init__(**settings)
        self.indices, self.wanted, self.calls = torch.tensor(indices), wanted, []

    @property
    def signals(self):
        return self.wanted

    def prune(self, features, saliency, grid, timestamps, segment_features=None, key=None):
        self.calls.append({"features": features, "saliency": saliency, "grid": grid, "timestamps": timestamps,
                           "segment_features": segment_features, "key": key})  # fmt: skip
        return Pruned(self.indices, features.flatten(0, 1)[self.indices], torch.tensor([len(features)]))


def example(*rows, **settings):
    rows = rows or ([5, 6, *video(), 7, 8],)
    count = sum(row.count(VIDEO) for row in rows) // (4 * TOKENS + 1)
    return prompt(*rows) | {"pixel_values_videos": pixels(count)} | settings


def test_logits_are_those_of_the_shorter_prompt(models):
    """Against the prompt put together by hand from the model's own features."""
    model, inputs = models(), example()
    indices = [30, 2, 11]  # in any order a method likes
    with torch.no_grad():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
        text = model.get_input_embeddings()(inputs["input_ids"][0])
        embeds = torch.cat((text[:2], features[indices], model.model.image_newline[None], text[-2:]))[None]
        expected = model(inputs_embeds=embeds, attention_mask=torch.ones(1, 8, dtype=torch.long)).logits
        with attach(model, Spy(indices)) as session:
            actual = model(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert session.videos[0].indices.tolist() == indices


def test_columns_follow_their_tokens():
    """A family whose tokens keep their own positions reads them off the columns, in the order of the embeddings."""
    row = torch.tensor([0, 1, 3, 4, 7, 9])
    slots = place(row, torch.tensor([7, 3, 4]))
    assert slots.tolist() == [2, 3, 4]
    assert row.tolist() == [0, 1, 7, 3, 4, 9]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_on_its_side(models, side):
    model = models()
    rows = [5, *video(), 7], [5, *video(), 7, *video(), 9, 9]
    inputs = prompt(*rows, side=side) | {"pixel_values_videos": pixels(3)}
    with torch.no_grad(), attach(model, Spy()):
        together = model(**inputs).logits
        alone = model(**prompt(rows[0]), pixel_values_videos=inputs["pixel_values_videos"][:1]).logits
    own = slice(-6, None) if side == "left" else slice(6)
    assert together.shape[1] == 12
    torch.testing.assert_close(together[0, own], alone[0], atol=1e-4, rtol=1e-4)


def test_rows_that_become_unlike_get_a_mask(models):
    """Prompts of one length, without a mask, of which one loses more than the other."""
    model, text = models(), [5] * 40
    inputs = prompt([6, *video(), 7], text[:39]) | {"pixel_values_videos": pixels(1)}
    del inputs["attention_mask"]
    with torch.no_grad(), attach(model, Spy()):
        logits = model(**inputs).logits
        alone = model(prompt([6, *video(), 7])["input_ids"], pixel_values_videos=inputs["pixel_values_videos"]).logits
    with torch.no_grad():
        plain = model(prompt(text[:39])["input_ids"]).logits
    assert logits.shape[1] == 39
    torch.testing.assert_close(logits[0, -6:], alone[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1], plain[0], atol=1e-4, rtol=1e-4)


def test_labels_follow_their_tokens(models):
    model = models()
    inputs = example([5, *video(), 7, 8], [5, *video(), 7, 8, 9, 10])
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == VIDEO) | (inputs["attention_mask"] == 0), -100)
    with torch.no_grad(), attach(model, Spy()):
        out = model(**inputs, labels=labels)
    shorter = torch.tensor([[-100, -100, 5, *[-100] * 4, 7, 8], [5, *[-100] * 4, 7, 8, 9, 10]])
    expected = model.loss_function(out.logits, shorter, vocab_size=model.config.text_config.vocab_size)
    torch.testing.assert_close(out.loss, expected)
    with torch.no_grad(), make_pruner("uniform", 1.0)(model):
        kept = model(**inputs, labels=labels)
    with torch.no_grad():
        plain = model(**inputs, labels=labels)
    assert torch.equal(kept.loss, plain.loss)


def test_some_logits(models):
    model, inputs = models(), example()
    with torch.no_grad(), attach(model, Spy()):
        last = model(**inputs, logits_to_keep=2).logits
        torch.testing.assert_close(last, model(**inputs).logits[:, -2:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="logits_to_keep as a tensor"):
            model(**inputs, logits_to_keep=torch.tensor([3]))


def test_times_and_keys(models):
    model, inputs = models(), example([9, *video(), 8], [5, *video(), 7, *video()])
    times = [[0.0, 0.5, 1.0, 1.5], torch.arange(4) * 2, [3, 4, 5, 6]]
    metadata = [
        VideoMetadata(total_num_frames=100, fps=25.0, frames_indices=[0, 25, 50, 75]),
        {"fps": None, "frames_indices": [0, 1, 2, 3]},
        [{"fps": 2.0, "frames_indices": [0, 1, 2, 3]}],
    ]
    default, ordinals = [[0, 1, 2, 3]] * 3, ["0", "0", "1"]
    told, names = [[0, 0.5, 1, 1.5], [0, 2, 4, 6], [3, 4, 5, 6]], ["a", "b", 7]
    cases = (
        ({}, default, ordinals),
        ({"video_timestamps": times, "video_keys": names}, told, ["a", "b", "7"]),
        ({"video_metadata": metadata}, [*default[:2], told[0]], ordinals),
        ({"video_metadata": metadata, "video_timestamps": times[::-1]}, told[::-1], ordinals),
    )
    for given, expected, keys in cases:
        for call in (model, lambda **kwargs: model.generate(**kwargs, max_new_tokens=1)):
            spy = Spy()
            with torch.no_grad(), attach(model, spy):
                call(**inputs, **given)
            assert [call["timestamps"].tolist() for call in spy.calls] == expected
            assert [call["key"] for call in spy.calls] == keys
            assert all(call["grid"] == GRID and call["saliency"] is None for call in spy.calls)
    with torch.no_grad(), attach(model, Spy()):
        model(torch.tensor([[5, 6]]), video_timestamps=[], video_keys=[])
        for name in ("video_timestamps", "video_keys"):
            for values in (times[:2], [*times, times[0]]):
                with pytest.raises(ValueError, match=f"{name}.* has {len(values)} entries"):
                    model(**inputs, **{name: values})
        with pytest.raises(ValueError, match="3 timestamps for a video of 4 frames"):
            model(**inputs, video_timestamps=[[0, 1, 2]] * 3)


def test_only_what_is_asked_for_is_computed(models, monkeypatch):
    model, inputs = models(), example()
    monkeypatch.setattr("tango.models.llava_onevision.load_pooling_head", lambda *_, **__: pytest.fail("not needed"))
    monkeypatch.setattr("tango.models.llava_onevision.mean_query_saliency", lambda *_: pytest.fail("not needed"))
    with torch.no_grad(), attach(model, Spy()):
        model(**inputs)
    monkeypatch.undo()
    monkeypatch.setattr("tango.models.llava_onevision.load_pooling_head", lambda *_, **__: pytest.fail("not needed"))
    spy = Spy(wanted=frozenset({"saliency", "key"}), saliency="global_query")
    with torch.no_grad(), attach(model, spy):
        model(**inputs)
    assert spy.calls[0]["saliency"].shape == (4, TOKENS)
    with pytest.raises(ValueError, match=r"spy needs motion; LLaVA-OneVision has \['frame_vectors', 'key', 'keys', "), \
            attach(model, Spy(wanted=frozenset({"motion"}))):  # fmt: skip
        pass


def test_attention_sinks(tmp_path):
    """On the 14 x 14 grid the family's sinks reach a pruner that has none of its own; elsewhere nothing does."""
    seen = []

    class Sinks(Tango):
        def prune(self, *args, **kwargs):
            seen.append(self.sink_tokens)
            return super().prune(*args, **kwargs)

    model = build_model(tmp_path, image_size=108, patch_size=4, num_hidden_layers=1)
    inputs = prompt([5, *[VIDEO] * 393]) | {"pixel_values_videos": pixels(1, 2, size=108)}
    for own in (None, (), (3,)):
        pruner = Sinks(0.1, sink_tokens=own)
        with torch.no_grad(), pruner(model):
            model(**inputs)
        assert pruner.sink_tokens == own
    model = build_model(tmp_path)
    with torch.no_grad(), Sinks(0.3)(model):
        model(**example())
    assert seen == [SINK_TOKENS[14, 14], (), (3,), None]
    assert SINK_TOKENS[14, 14] == (28, 27, 41, 169, 11, 12)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("method", ["random", "uniform", "topk", "tango"])
def test_few_frames_and_small_budgets(models, method, frames):
    model = models()
    inputs = prompt([5, *video(frames), 7]) | {"pixel_values_videos": pixels(1, frames)}
    for ratio in (0.01, 0.1, 0.5, 1.0):
        with make_pruner(method, ratio)(model) as session:
            model.generate(**inputs, max_new_tokens=2)
        assert 1 <= session.videos[0].tokens_after <= frames * TOKENS


def test_a_thousand_frames(models):
    """The tower sees a bounded number of frames at once."""
    model, frames = models(), 1100
    inputs = prompt([5, *video(frames), 7]) | {"pixel_values_videos": pixels(1, frames)}
    sizes = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with make_pruner("tango", 0.05)(model) as session:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    hook.remove()
    assert out.shape[1] == frames * TOKENS + 3 + 2
    assert max(sizes) <= FRAMES_PER_CALL and sum(sizes) == frames
    assert session.videos[0].tokens_after < 0.25 * session.videos[0].tokens_before


def test_chunks_change_nothing(models, monkeypatch):
    model = models()
    inputs = prompt([5, *video(7), 7]) | {"pixel_values_videos": pixels(1, 7)}
    wanted = frozenset({"saliency", "segment_features"})
    spies = [Spy(wanted=wanted), Spy(wanted=wanted)]
    for spy, frames in zip(spies, (64, 3), strict=True):
        monkeypatch.setattr("tango.models.llava_onevision.FRAMES_PER_CALL", frames)
        with torch.no_grad(), attach(model, spy):
            model(**inputs)
    for name in ("features", "saliency", "segment_features"):
        torch.testing.assert_close(spies[0].calls[0][name], spies[1].calls[0][name], atol=1e-5, rtol=1e-5)


def test_bad_features_name_the_video(models):
    model, inputs = models(), example([5, *video(), 7, *video()])
    for value in (float("nan"), float("inf")):
        inputs["pixel_values_videos"][1, 2, 0, 0, 0] = value
        with torch.no_grad(), make_pruner("tango", 0.3)(model):
            with pytest.raises(ValueError, match=r"video 1 \(key '1'\): its features must be finite"):
                model.generate(**inputs, max_new_tokens=2)
            with pytest.raises(ValueError, match=r"video 1 \(key 'clip'\)"):
                model(**inputs, video_keys=["fine", "clip"])


def test_malformed_prompts(models):
    model, inputs = models(), example()
    with torch.no_grad(), make_pruner("uniform", 0.3)(model):
        with pytest.raises(ValueError, match=r"holds 36 video placeholders, and 1 videos of 4 frames need 37"):
            model(**(inputs | prompt([5, *video()[1:]])))
        with pytest.raises(ValueError, match="spread over several prompts"):
            model(**(inputs | prompt([5, *video()[:20]], [5, *video()[20:]])))
        with pytest.raises(ValueError, match=r"shape \(4, 3, 40, 40\), not \(videos, frames, C, H, W\)"):
            model(**(inputs | {"pixel_values_videos": pixels(1)[0]}))
        with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\); the prompt needs \(1, 41\)"):
            model(**(inputs | {"attention_mask": torch.ones(1, 3)}))
        with pytest.raises(ValueError, match="attention_mask hides placeholders"):
            model(**(inputs | {"attention_mask": (inputs["input_ids"] != VIDEO).long()}))
        with pytest.raises(ValueError, match=r"holds 0 image placeholders for 55 image features"):
            model(**inputs, pixel_values=torch.randn(1, 2, 3, 40, 40), image_sizes=torch.tensor([[40, 40]]))


def test_gradients_flow(models):
    """Forward with labels can be differentiated, as without pruning; pruning itself is not trained."""
    model, inputs = models(), example()
    with make_pruner("uniform", 0.3)(model):
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == VIDEO, -100)).loss.backward()
    gradients = [model.lm_head.weight.grad, model.model.multi_modal_projector.linear_1.weight.grad]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None and bool(gradient.isfinite().all()) and gradient.any() for gradient in gradients)
