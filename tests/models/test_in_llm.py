"""Pruning inside the language model, against its layers run by hand with full attention maps; ways to generate."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from decoder_by_hand import Drop, Inside, run
from packaging.version import Version
from tiny_llava import TOKENS, VIDEO, build_model, make_pruner, pixels, prompt, video
from transformers import StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tango.models import attach
from tango.models.in_llm import MARK, DecoderPruner
from tango.models.llava_video import LlavaVideoForConditionalGeneration
from tango.pruners import Tango
from tango.pruners.fastv import FastV
from tango.pruners.in_llm import LayerPruning

LAYERS = 4
ROWS = [5, 6, *video(), 7, 8], [5, *video(), 11, *video(), 12], [9, 10, 11]


METHODS = {
    "tango": (Tango(retention_ratio=0.4, pruned_layer=2), "mean"),
    "tango, layer 3": (Tango(retention_ratio=0.3, pruned_layer=3, llm_retention=0.3), "mean"),
    "fastv": (FastV(retention_ratio=0.4, pruned_layer=1), "drop"),
    "tango, both ways": (Tango(retention_ratio=0.4, pruned_layer=2, causal=False), "mean"),
    "sequential": (Inside(LayerPruning(2, 0.3, merging="sequential"), frame=5), "sequential"),
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Models of four layers, by attention implementation and dtype."""
    made = {}

    def get(attention="sdpa", dtype=torch.float32):
        if (attention, dtype) not in made:
            folder = tmp_path_factory.mktemp("deep")
            made[attention, dtype] = build_model(folder, dtype, attention, layers=LAYERS)
        return made[attention, dtype]

    return get


def example(*rows, **settings):
    rows = rows or ROWS
    count = sum(row.count(VIDEO) for row in rows) // (4 * TOKENS + 1)
    return prompt(*rows) | {"pixel_values_videos": pixels(count)} | settings


def before_llm(model, pruner, inputs):
    """Rows of embeddings (n, D) as the decoder gets them, and the spans of the videos in each."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["inputs_embeds"], kwargs["attention_mask"])), with_kwargs=True
    )
    with torch.no_grad(), attach(model, pruner) as session:
        model(**inputs)
    hook.remove()
    counts = iter([record.tokens_after + 1 for record in session.videos])
    embeds, spans = [], []
    for row, mask, ids in zip(seen[0][0], seen[0][1], inputs["input_ids"], strict=True):
        own, place, before = [], 0, None
        for token in ids[ids != 0].tolist():
            if token != VIDEO:
                place += 1
            elif before != VIDEO:
                own.append(list(range(place, place := place + next(counts))))
            before = token
        embeds.append(row[mask.bool()])
        spans.append(own)
        assert len(embeds[-1]) == place
    return embeds, spans


def by_hand(model, pruner, merging, embeds, spans, new=()):
    """Logits (n', vocabulary) of one row of a prompt followed by new tokens, and what was dropped of it."""
    inside = pruner.in_llm(LAYERS)
    drop = Drop(inside.layer, inside.retention, len(embeds), spans, merging, inside.causal)
    with torch.no_grad():
        later = model.get_input_embeddings()(torch.tensor(new, dtype=torch.long))
        whole = torch.cat((embeds, later))
        positions = torch.arange(len(whole))[None]
        return model.lm_head(run(model.model.language_model, whole, positions, drop)), drop


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_by_hand(deep, method, attention):
    model, inputs = deep(attention), example()
    pruner, merging = METHODS[method]
    with torch.no_grad(), attach(model, pruner) as session:
        logits = model(**inputs).logits
    records = iter(session.videos)
    widths = []
    for row, embeds, spans in zip(logits, *before_llm(model, pruner, inputs), strict=True):
        expected, drop = by_hand(model, pruner, merging, embeds, spans)
        widths.append(len(expected))
        torch.testing.assert_close(row[-len(expected) :], expected, atol=1e-4, rtol=1e-4)
        for span, left in zip(spans, drop.left, strict=True):
            record, inside = next(records), pruner.in_llm(LAYERS)
            assert len(left) == max(1, round(inside.retention * len(span))) < len(span)
            assert record.tokens_in_llm == len([place for place in left if place != span[-1]])
            seen = inside.layer * record.tokens_after + (LAYERS - inside.layer) * record.tokens_in_llm
            assert record.average_retention == pytest.approx(seen / LAYERS / record.tokens_before)
    assert logits.shape[1] == max(widths)


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_as_by_hand(deep, method):
    """With and without a cache, in a padded batch: the logits of each new token."""
    model, inputs = deep(), example(max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True)
    pruner, merging = METHODS[method]
    with attach(model, pruner):
        cached = model.generate(**inputs)
        uncached = model.generate(**inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    new = cached.sequences[:, inputs["input_ids"].shape[1] :]
    for index, (embeds, spans) in enumerate(zip(*before_llm(model, pruner, inputs), strict=True)):
        for step in range(new.shape[1]):
            if 1 in new[index, :step]:
                break
            expected = by_hand(model, pruner, merging, embeds, spans, new[index, :step].tolist())[0][-1]
            torch.testing.assert_close(cached.logits[step][index], expected, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(uncached.logits[step][index], expected, atol=2e-4, rtol=1e-4)


def test_looking_both_ways_changes_all_rows_but_the_last(deep):
    """Of layer K-1's output; what stays is the same."""
    model, inputs, seen = deep(), example(ROWS[0]), []
    for method in ("tango", "tango, both ways"):
        hook = model.model.language_model.layers[1].register_forward_hook(lambda *args: seen.append(args[-1]))
        with torch.no_grad(), attach(model, METHODS[method][0]) as session:
            logits = model(**inputs).logits
        seen[-1] = seen[-1], logits, session.videos[0].tokens_in_llm
        hook.remove()
    (causal, _, left), (both, logits, same) = seen
    torch.testing.assert_close(both[0, -1], causal[0, -1])
    assert ((both - causal).abs().amax(-1)[0, :-1] > 1e-3).all()
    assert left == same and logits.isfinite().all()


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "do_sample": False},
    "all beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "length_penalty": 0.5},
    "guidance": {"guidance_scale": 1.5, "do_sample": False},
}


@pytest.mark.parametrize("method", ["tango", "tango, both ways", "fastv"])
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_generating(deep, way, method):
    """A batch as one by one, in any attention and with any cache; sequences are laid out as without pruning."""
    pruner, model = METHODS[method][0], deep()
    inputs = example(*ROWS[:2], max_new_tokens=6, **WAYS[way])

    def generate(model, **changes):
        torch.manual_seed(3)
        with attach(model, pruner):
            return model.generate(**inputs | changes)

    out = generate(model)
    width, copies = inputs["input_ids"].shape[1], WAYS[way].get("num_return_sequences", 1)
    assert torch.equal(out[:, :width], inputs["input_ids"].repeat_interleave(copies, 0))
    assert torch.equal(out, generate(deep("eager")))
    assert torch.equal(out, generate(model, cache_implementation="static"))
    if way == "guidance":
        return
    assert torch.equal(out, generate(model, use_cache=False))
    if way == "sampling":
        return
    for index, row in enumerate(ROWS[:2]):
        videos = inputs["pixel_values_videos"][index : 1 + 2 * index]
        alone = generate(model, **prompt(row), pixel_values_videos=videos)[:, len(row) :]
        both = out[copies * index : copies * (index + 1), width:]
        length = min(alone.shape[1], both.shape[1])
        assert torch.equal(both[:, :length], alone[:, :length])
        assert (both[:, length:] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_on_its_side(deep, side):
    model, pruner = deep(), METHODS["fastv"][0]
    rows = [5, *video(), 7], [5, *video(), 7, *video(), 9, 9]
    inputs = prompt(*rows, side=side) | {"pixel_values_videos": pixels(3)}
    with torch.no_grad(), attach(model, pruner):
        together = model(**inputs).logits
        alone = model(**prompt(rows[0]), pixel_values_videos=inputs["pixel_values_videos"][:1]).logits
    own = slice(-alone.shape[1], None) if side == "left" else slice(alone.shape[1])
    torch.testing.assert_close(together[0, own], alone[0], atol=1e-4, rtol=1e-4)


def test_caches_hold_what_their_layers_saw(deep):
    """And forward() goes on from them by hand as generate() does, also from a copy."""
    model, pruner = deep(), METHODS["tango"][0]
    inputs = example(*ROWS[:2])
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), attach(model, pruner) as session:
        expected = model.generate(**inputs, **settings)
        new = expected.sequences[:, inputs["input_ids"].shape[1] :]
        out = model(**inputs, use_cache=True)
        cache = out.past_key_values
        lengths = [cache.get_seq_length(layer) for layer in range(LAYERS)]
        counts = [(record.tokens_after, record.tokens_in_llm) for record in session.videos]
        width = max(4 + counts[0][0] + 1, 3 + counts[1][0] + counts[2][0] + 2)
        assert lengths[:2] == [width, width]
        assert lengths[2] == lengths[3] == out.logits.shape[1] < width
        mask = torch.ones(2, width, dtype=torch.long)
        mask[0, : width - 4 - counts[0][0] - 1] = 0
        copied = copy.deepcopy(cache)
        for cache in (cache, copied):  # noqa: B020
            for step in range(3):
                grown = torch.cat((mask, mask.new_ones(2, step + 1)), 1)
                out = model(input_ids=new[:, step : step + 1], attention_mask=grown, past_key_values=cache)
                torch.testing.assert_close(out.logits[:, -1], expected.logits[step + 1], atol=1e-4, rtol=1e-4)
        other = DecoderPruner(model.model.language_model, LayerPruning(1, 0.5))
        with other.installed(session), pytest.raises(ValueError, match=r"pruned before layer 2, .* before layer 1"):
            model(input_ids=new[:, :1], past_key_values=copied)


def test_a_cache_may_be_emptied_and_used_again(deep):
    model, pruner = deep(), METHODS["tango"][0]
    inputs = example(ROWS[0], max_new_tokens=3, do_sample=False)
    text = prompt(list(range(5, 40))) | {"max_new_tokens": 3, "do_sample": False}
    plain = model.generate(**text)
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with attach(model, pruner):
        out = model.generate(**inputs, past_key_values=cache)
        assert hasattr(cache, MARK)
        cache.reset()
        assert torch.equal(model.generate(**text, past_key_values=cache), plain)
        cache.reset()
        assert torch.equal(model.generate(**inputs, past_key_values=cache), out)


def unpadded(module, query, key, value, attention_mask, scaling, position_ids=None, is_causal=True, **_):
    """What flash attention does with its inputs: a mask (B, length) cuts keys and values, and padding, off."""
    assert not _is_packed_sequence(position_ids, len(query))
    length, new = key.shape[2], query.shape[2]
    shown = torch.ones(len(query), length) if attention_mask is None else attention_mask
    key, value = (each[:, :, : shown.shape[1]].repeat_interleave(2, 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    later = torch.ones(scores.shape[-2:]).triu(scores.shape[-1] - new + 1).bool() & is_causal
    scores = scores.masked_fill(later | ~shown.bool()[:, None, None], -1e9)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS])
@pytest.mark.parametrize("method", ["tango", "tango, both ways", "fastv"])
def test_masks_as_flash_attention_takes_them(deep, monkeypatch, method, rows):
    model, inputs = deep(), example(*rows, max_new_tokens=5, do_sample=False)
    static = {"cache_implementation": "static"}
    with attach(model, METHODS[method][0]):
        expected = model.generate(**inputs)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_by_hand", unpadded)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_by_hand", flash_attention_mask)
    for config in (model.config, model.model.language_model.config):
        monkeypatch.setattr(config, "_attn_implementation_internal", "flash_by_hand")
    # Some versions of transformers lose the mask of a static cache without padding, pruned or not.
    sound = torch.equal(model.generate(**inputs), model.generate(**inputs, **static))
    assert sound or Version(transformers.__version__) < Version("5.24")
    with attach(model, METHODS[method][0]):
        for changes in ({}, {"use_cache": False}, *([static] if sound else [])):
            if method == "tango, both ways" and changes == {"use_cache": False}:
                with pytest.raises(ValueError, match="causal=False needs use_cache=True"):
                    model.generate(**inputs, **changes)
            else:
                assert torch.equal(model.generate(**inputs, **changes), expected)


def test_positions_go_on(deep):
    """Layers from K on get the rotary embeddings of the places that are left; new tokens count the whole prompt."""
    model, pruner = deep(), METHODS["fastv"][0]
    inputs = example(ROWS[0], max_new_tokens=3, do_sample=False)
    seen = []
    with attach(model, pruner):
        hook = model.model.language_model.layers[3].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["position_embeddings"][0]), with_kwargs=True
        )
        model.generate(**inputs)
        hook.remove()
    cos = model.model.language_model.rotary_emb(torch.zeros(1), torch.arange(50)[None])[0][0]
    places = [[(row == cos).all(1).nonzero().item() for row in call[0]] for call in seen]
    assert places[1:] == [[41], [42]]  # 4 text tokens, 36 of the video and its newline came before
    assert places[0][:2] == [0, 1] and places[0][-2:] == [39, 40]
    assert places[0] == sorted(places[0]) and len(places[0]) == 4 + round(37 * 0.2) < 41


def test_newlines_can_stay(deep):
    model = deep()
    inputs = example(ROWS[0])
    for newlines, count in ((True, 1), (False, 2)):
        method = Inside(LayerPruning(1, 0.01, newlines=newlines))
        with torch.no_grad(), attach(model, method) as session:
            logits = model(**inputs).logits
        assert logits.shape[1] == 4 + count
        if not newlines:
            assert session.videos[0].tokens_in_llm == 1


def test_rows_of_llava_video(tmp_path):
    """Four frames of 2 x 2 tokens, a newline after each row: 24 places, 8 of them newlines."""
    model = build_model(tmp_path, model_class=LlavaVideoForConditionalGeneration, layers=LAYERS)
    inputs = prompt([5, *[VIDEO] * 24, 7]) | {"pixel_values_videos": pixels(1)}
    for newlines, left in ((True, 12), (False, 8 + 8)):
        with torch.no_grad(), attach(model, Inside(LayerPruning(2, 0.5, newlines=newlines))) as session:
            assert model(**inputs).logits.shape[1] == 2 + left
        record = session.videos[0]
        assert record.tokens_after == 16
        assert record.tokens_in_llm <= 12 if newlines else record.tokens_in_llm == 8
        assert record.average_retention == (1 + record.tokens_in_llm / 16) / 2


def test_bf16(deep):
    model, pruner = deep(dtype=torch.bfloat16), METHODS["tango"][0]
    inputs = example(*ROWS, max_new_tokens=4, do_sample=False)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    with attach(model, pruner) as session:
        out = model.generate(**inputs)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    for record in session.videos:
        assert record.tokens_in_llm in (round((record.tokens_after + 1) / 2) - 1, round((record.tokens_after + 1) / 2))


def test_nothing_is_left_behind(deep):
    model, inputs = deep(), example(max_new_tokens=4, do_sample=False)
    layer = model.model.language_model.layers[3]

    def state():
        return dict(vars(model)), [
            (dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()
        ]

    expected = model.generate(**inputs)  # transformers adds hooks of its own when it first runs
    before = state()
    for pruner, _ in METHODS.values():
        with attach(model, pruner):
            model.generate(**inputs)
        assert state() == before
        broken = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("broken")))
        with pytest.raises(KeyError), attach(model, pruner):
            model.generate(**inputs)
        broken.remove()
        assert state() == before
    assert torch.equal(model.generate(**inputs), expected)


def test_an_error_leaves_the_next_prompt_alone(deep):
    """A prompt that failed before the decoder ran must not be pruned out of the next one."""
    model, text = deep(), prompt([5] * 45)
    with torch.no_grad():
        plain = model(**text).logits
        with attach(model, METHODS["fastv"][0]):
            hook = model.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("broken")))
            with pytest.raises(KeyError):
                model(**example(ROWS[0]))
            hook.remove()
            assert torch.equal(model(**text).logits, plain)


@pytest.mark.parametrize("pruner", [Tango(retention_ratio=1.0, pruned_layer=2), FastV(retention_ratio=1.0),
                                    Tango(retention_ratio=1.0, pruned_layer=2, llm_retention=1.0),
                                    Inside(LayerPruning(2, 1.0))])  # fmt: skip
def test_all_kept_is_equal(deep, pruner):
    model, inputs = deep(), example(max_new_tokens=4, do_sample=False, suppress_tokens=[90, VIDEO])
    expected = model.generate(**inputs)
    with torch.no_grad():
        logits = model(**example()).logits
        with attach(model, pruner) as session:
            assert torch.equal(model.generate(**inputs), expected)
            assert torch.equal(model(**example()).logits, logits)
    assert [record.average_retention for record in session.videos] == [1, 1, 1]


def test_text_alone_is_untouched(deep):
    model, text = deep(), prompt([5, 6, 7], [8, 9])
    with torch.no_grad():
        plain = model.generate(**text, max_new_tokens=4, do_sample=False), model(**text).logits
        with attach(model, METHODS["tango"][0]) as session:
            model(**example())
            assert torch.equal(model.generate(**text, max_new_tokens=4, do_sample=False), plain[0])
            assert torch.equal(model(**text).logits, plain[1])
            assert session.videos == []


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (Tango(pruned_layer=4), r"Tango.pruned_layer = 4: a language model of 4 layers .* before layers 1 to 3"),
        (FastV(retention_ratio=0.9, pruned_layer=5), r"FastV.pruned_layer = 5: .* before layers 1 to 3"),
        (
            FastV(retention_ratio=0.5),
            r"FastV.retention_ratio = 0.5: .* of 4 layers .* above 0.500 .* lower pruned_layer",
        ),
        (FastV(retention_ratio=0.2, pruned_layer=1), r"only ratios above 0.250 can be met; raise the ratio$"),
    ],
)
def test_what_cannot_be_met_says_so(deep, pruner, message):
    with pytest.raises(ValueError, match=message), attach(deep(), pruner):
        pass


def test_what_cannot_work_says_so(deep):
    model, inputs = deep(), example(ROWS[0])
    with attach(model, METHODS["fastv"][0]):
        with pytest.raises(ValueError, match="labels do not work with pruning inside"):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match="logits_to_keep as a tensor"):
            model(**inputs, logits_to_keep=torch.tensor([3]))
    config = model.model.language_model.config
    kinds = config.layer_types
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    try:
        with pytest.raises(ValueError, match="sliding windows"), make_pruner("tango", 0.5, pruned_layer=2)(model):
            pass
    finally:
        config.layer_types = kinds


@pytest.mark.parametrize("shape, fits", [
    ((2, 5), True), ((2, 7), True), ((4, 5), True), ((3, 5), False), ((1, 9), False), ((2, 4), False), ((3, 4), False),
])  # fmt: skip
def test_a_decoder_that_is_called_with_another_prompt_is_told(shape, fits):
    """Of a prompt of two rows of five tokens; beams repeat rows, and a cache may be longer than the prompt."""
    given = SimpleNamespace(source=torch.zeros(2, 5), attended=lambda: torch.ones(2, 5, dtype=torch.bool))
    hidden = torch.zeros(*shape, 8)
    if fits:
        seen, last = DecoderPruner._visible(None, given, hidden)
        assert seen.shape == shape and seen[:, :5].all() and not seen[:, 5:].any() and last.tolist() == [4] * shape[0]
    else:
        with pytest.raises(RuntimeError, match=rf"2 rows of 5 tokens, and the decoder was called with \({shape[0]}, "):
            DecoderPruner._visible(None, given, hidden)
