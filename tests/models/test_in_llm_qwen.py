"""Pruning inside the decoders of Qwen2.5-VL and Qwen3-VL: M-RoPE positions with gaps, frames apart, deepstack."""

from dataclasses import replace

import pytest
import torch
from decoder_by_hand import Drop, Inside, run
from tiny_qwen import END, PAD, START, VIDEO, build_model, video_inputs

from tango.models import attach
from tango.pruners import Tango
from tango.pruners.fastv import FastV
from tango.pruners.in_llm import LayerPruning

LAYERS, FRAMES, TOKENS = 4, 4, 9


METHODS = {
    "tango": (Tango(retention_ratio=0.4, pruned_layer=2), "mean"),
    "fastv": (FastV(retention_ratio=0.5, pruned_layer=1), "drop"),
    "tango, both ways": (Tango(retention_ratio=0.4, pruned_layer=2, causal=False), "mean"),
    "sequential": (Inside(LayerPruning(3, 0.3, merging="sequential")), "sequential"),
}
KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def outside(pruner):
    """The same method without what it does inside."""
    if isinstance(pruner, Tango):
        return replace(pruner.before_llm(LAYERS), pruned_layer=None)
    return Inside(None, positions=pruner.positions)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    made = {}

    def get(kind, attention="sdpa"):
        if (kind, attention) not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind, attention] = build_model(folder, attention=attention, kind=kind, layers=LAYERS)
        return made[kind, attention]

    return get


def video(kind):
    """Placeholders of one video: in Qwen3-VL each frame is a span of its own, after its time."""
    if kind == "qwen2_5_vl":
        return [START, *[VIDEO] * (FRAMES * TOKENS), END]
    return [token for frame in range(FRAMES) for token in (60 + frame, START, *[VIDEO] * TOKENS, END)]


def rows(kind):
    return [5, 6, *video(kind), 7, 8], [5, *video(kind), 11, *video(kind), 12, 13, 14], [9, 10, 11]


def example(*prompts, **settings):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in prompts])
    count = int((ids == VIDEO).sum()) // (FRAMES * TOKENS)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "mm_token_type_ids": 2 * (ids == VIDEO).long(),
            **video_inputs(*[(FRAMES, 6, 6)] * count), **settings}  # fmt: skip


def before_llm(model, pruner, inputs):
    """For each row of a prompt: embeddings (n, D), positions (3, 1, n), deepstack features (n, D), spans of places."""
    seen = {}
    with torch.no_grad(), attach(model, outside(pruner)) as session:
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
    records, prompts = iter(session.videos), []
    where, features = seen.get("visual_pos_masks"), seen.get("deepstack_visual_embeds") or []
    whole = []
    for each in features:
        whole.append(torch.zeros_like(seen["inputs_embeds"]))
        whole[-1][where] = each
    for index, ids in enumerate(inputs["input_ids"]):
        real = seen["attention_mask"][index].bool()
        ids = ids[ids != PAD]
        stays, videos = ids != VIDEO, []
        for columns in (ids == VIDEO).nonzero()[:, 0].split(FRAMES * TOKENS):
            if len(columns):
                videos.append(columns[next(records).indices])
                stays[videos[-1]] = True
        places = stays.cumsum(0) - 1
        assert int(places[-1]) + 1 == int(real.sum())
        own = seen["position_ids"][-3:, index, real][:, None]
        spans = [places[columns].tolist() for columns in videos]
        prompts.append((seen["inputs_embeds"][index, real], own, [each[index, real] for each in whole], spans))
    return prompts


def by_hand(model, pruner, merging, embeds, positions, deepstack, spans, new=()):
    """Logits (n', vocabulary) of one row of a prompt followed by new tokens."""
    inside = pruner.in_llm(LAYERS)
    drop = Drop(inside.layer, inside.retention, len(embeds), spans, merging, inside.causal)
    later = torch.tensor(new, dtype=torch.long)
    with torch.no_grad():
        whole = torch.cat((embeds, model.get_input_embeddings()(later)))
        positions = torch.cat((positions, positions[..., -1:] + 1 + torch.arange(len(new))), -1)
        deepstack = [torch.cat((each, each.new_zeros(len(new), each.shape[1]))) for each in deepstack]
        return model.lm_head(run(model.model.language_model, whole, positions, drop, deepstack))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_as_by_hand(deep, kind, method):
    """In a padded batch, with and without a cache, with each attention; and forward() alone."""
    inputs = example(*rows(kind))
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    pruner, merging = METHODS[method]
    outs = []
    for attention, cached in (("sdpa", True), ("eager", True), ("sdpa", False)):
        with attach(deep(kind, attention), pruner) as session:
            outs.append(deep(kind, attention).generate(**inputs, **settings, use_cache=cached))
        assert [record.tokens_before for record in session.videos] == [FRAMES * TOKENS] * 3
    model = deep(kind)
    with torch.no_grad(), attach(model, pruner):
        logits = model(**inputs).logits
    new = outs[0].sequences[:, inputs["input_ids"].shape[1] :]
    assert all(torch.equal(out.sequences, outs[0].sequences) for out in outs)
    for index, prompt in enumerate(before_llm(model, pruner, inputs)):
        expected = by_hand(model, pruner, merging, *prompt)
        torch.testing.assert_close(logits[index, -len(expected) :], expected, atol=2e-4, rtol=1e-4)
        for step in range(new.shape[1]):
            if 1 in new[index, :step]:
                break
            expected = by_hand(model, pruner, merging, *prompt, new=new[index, :step].tolist())[-1]
            for out in outs:
                torch.testing.assert_close(out.logits[step][index], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_ways_of_generating(deep, kind):
    """Beams and samples with any cache, and a batch as one by one."""
    model, pruner = deep(kind), METHODS["fastv"][0]
    prompts = rows(kind)[:2]
    for way in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "num_return_sequences": 2}):
        inputs = example(*prompts, max_new_tokens=5, **way)
        outs = []
        for changes in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            torch.manual_seed(3)
            with attach(model, pruner):
                outs.append(model.generate(**inputs, **changes))
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
        if "num_beams" in way:
            for index, row in enumerate(prompts):
                own = slice(0, 144) if index == 0 else slice(144, None)
                grids = inputs["video_grid_thw"][index : 1 + 2 * index]
                alone = example(row) | {
                    "pixel_values_videos": inputs["pixel_values_videos"][own],
                    "video_grid_thw": grids,
                }
                with attach(model, pruner):
                    answer = model.generate(**alone, max_new_tokens=5, **way)[0, len(row) :]
                assert torch.equal(outs[0][index, inputs["input_ids"].shape[1] :][: len(answer)], answer)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kept_is_equal(deep, kind):
    model = deep(kind)
    inputs = example(*rows(kind))
    with torch.no_grad():
        expected = model(**inputs).logits
        for pruner in (Inside(LayerPruning(1, 1.0)), FastV(retention_ratio=1.0), Tango(1.0, pruned_layer=2)):
            pruner.positions = "transformers"
            with attach(model, pruner):
                torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
