"""Calls that people make of an attached model: a second question, threads, copies, training, compiled and offloaded."""

import copy
import io
import pickle
import threading

import accelerate
import peft
import pytest
import torch
from families import IMAGE, VIDEO, Spy, make_pruner
from tiny_qwen import END, START
from torch import nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from tango.models import attach, family_of
from tango.pruners import REGISTRY

QUESTION = [7, 8, 9]
PLACEHOLDERS = [IMAGE, VIDEO, START, END]  # as an answer they would be taken for another video
GREEDY = {"suppress_tokens": PLACEHOLDERS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
INSIDE = ("fastv",)  # methods that prune inside the language model
HOOKS_AGAIN = "__call__" in vars(GradientCheckpointingLayer)  # before transformers 5.23, with checkpointing


def example(family, rows=1):
    """Prompts of unlike length with a video each, so that rows are padded."""
    texts = [[5, *family.video(), *QUESTION], [5, 6, 6, *family.video(), 8], [*family.video(), 4, 4]][:rows]
    return family.prompt(*texts) | family.pixels(rows)


def cache_name(model):
    """What the installed transformers calls the cache."""
    decoder = family_of(model).language_model(model)
    return "cache" if "cache" in type(decoder).forward.__code__.co_varnames else "past_key_values"


def cache_of(output):
    return output.get("cache") or output.get("past_key_values")


def conversation(one, ids=(11, 12, 13, 14)):
    """The whole conversation so far and a next question, without the videos."""
    tail = torch.tensor([ids]).expand(len(one.sequences), -1)
    return torch.cat((one.sequences, tail), 1)


def whole_mask(inputs, ids):
    return nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - inputs["attention_mask"].shape[1]), value=1)


def with_types(family, inputs, ids):
    """The first prompt with other ids: its videos, and the placeholders' types where the family has them."""
    types = inputs.get("mm_token_type_ids")
    more = {} if types is None else {"mm_token_type_ids": nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))}
    return inputs | {"input_ids": ids, "attention_mask": whole_mask(inputs, ids)} | more


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "method, settings", [("tango", {}), ("topk", {"keep_positions": True}), ("prunevid", {"positions": "trained"})]
)
def test_second_question(family, method, settings, rows):
    model, inputs = family.model(), example(family, rows)
    with torch.no_grad(), attach(model, make_pruner(method, 0.3, **settings)) as session:
        one = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **GREEDY)
        ids = conversation(one)
        mask = whole_mask(inputs, ids)
        fresh = model.generate(**with_types(family, inputs, ids), max_new_tokens=3, min_new_tokens=3, **GREEDY)
        name, held = cache_name(model), cache_of(one).get_seq_length()

        def go_on(ids, mask, **settings):
            call = {"input_ids": ids, "attention_mask": mask, name: copy.deepcopy(cache_of(one))} | settings
            return model.generate(**call, min_new_tokens=3, **GREEDY)

        new = ids[:, one.sequences.shape[1] - 1 :]  # the last token that was generated has not been fed
        masks = mask, torch.ones(rows, held + new.shape[1], dtype=torch.long)
        calls = [go_on(ids, mask, max_new_tokens=3), go_on(ids, mask, max_length=ids.shape[1] + 3)]
        calls += [go_on(new, each, max_new_tokens=3) for each in masks]
        assert session.videos == []
        for call, prompt in zip(calls, (ids, ids, new, new), strict=True):
            assert torch.equal(call.sequences[:, : prompt.shape[1]], prompt)
            assert torch.equal(call.sequences[:, prompt.shape[1] :], fresh.sequences[:, ids.shape[1] :])
            torch.testing.assert_close(torch.stack(call.logits), torch.stack(fresh.logits), atol=2e-4, rtol=1e-4)
            assert cache_of(call).get_seq_length() == cache_of(fresh).get_seq_length()

        for each in (*masks, None):  # by hand
            cache = copy.deepcopy(cache_of(one))
            logits = model(input_ids=new, attention_mask=each, **{name: cache}).logits
            torch.testing.assert_close(logits[:, -1], fresh.logits[0], atol=2e-4, rtol=1e-4)
            assert cache.get_seq_length() == held + new.shape[1]
            again = model(input_ids=fresh.sequences[:, ids.shape[1], None], **{name: cache}).logits
            torch.testing.assert_close(again[:, -1], fresh.logits[1], atol=2e-4, rtol=1e-4)


TRAINED = {
    "positions": "trained"
}  # with transformers' own, Qwen2.5-VL goes on elsewhere than it numbers a whole prompt


@pytest.mark.parametrize("method, settings", [("topk", {}), ("topk", {"keep_positions": True}), ("tango", {})])
def test_by_hand_from_the_start(family, method, settings):
    """A prefix of text and video first, which a server keeps; then questions, and a copy of the cache for each."""
    model, name = family.model(), cache_name(family.model())
    rows = [5, *family.video()], [5, 6, 6, *family.video()]
    inputs = family.prompt(*rows) | family.pixels(2)
    tail = torch.tensor([[9, 11], [12, 13]])
    with torch.no_grad(), attach(model, make_pruner(method, 0.3, **TRAINED | settings)):
        ids = torch.cat((inputs["input_ids"], tail), 1)
        whole = model(**with_types(family, inputs, ids)).logits
        output = model(**inputs, use_cache=True)
        for question in (tail, tail.flip(0)):
            cache = copy.deepcopy(cache_of(output))
            logits = model(input_ids=question, **{name: cache}).logits
            if question is tail:
                torch.testing.assert_close(logits, whole[:, -2:], atol=2e-4, rtol=1e-4)
            else:
                assert (logits - whole[:, -2:]).abs().max() > 0.01


def test_second_question_with_pruning_inside(family):
    """The same as feeding its tokens one by one: what was dropped at the first question stays dropped."""
    model, name = family.model(), cache_name(family.model())
    inputs = example(family, 3)
    with torch.no_grad(), attach(model, make_pruner("fastv", 0.4)):
        one = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **GREEDY)
        ids = conversation(one)
        cached = {name: copy.deepcopy(cache_of(one))}
        two = model.generate(
            input_ids=ids, attention_mask=whole_mask(inputs, ids), max_new_tokens=1, **cached, **GREEDY
        )
        cache = copy.deepcopy(cache_of(one))
        for token in ids[:, one.sequences.shape[1] - 1 :].unbind(1):
            logits = model(input_ids=token[:, None], **{name: cache}).logits
        torch.testing.assert_close(two.logits[0], logits[:, -1], atol=2e-4, rtol=1e-4)
    with (
        torch.no_grad(),
        attach(model, make_pruner("topk", 0.4)),
        pytest.raises(ValueError, match="method that filled"),
    ):
        model(input_ids=ids[:, -1:], **{name: cache_of(one)})


def test_caches_that_cannot_go_on(family):
    model, inputs, name = family.model(), example(family), cache_name(family.model())
    with torch.no_grad(), attach(model, Spy()):
        one = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, **GREEDY)
        ids, cache = conversation(one), cache_of(one)
        mask = torch.ones_like(ids)
        other = ids.clone()
        other[:, 0] = 33
        pixels = {key: inputs[key] for key in family.pixels()}
        for call, words in (
            ({"input_ids": other, "attention_mask": mask}, "does not go on from"),
            ({"input_ids": ids[:, :4], "attention_mask": mask[:, :4]}, "does not go on from"),
            ({"input_ids": ids, "attention_mask": mask, **pixels}, "leave out those that the cache holds"),
            ({"input_ids": ids[:, -4:], "attention_mask": mask[:, :9]}, r"attention_mask has shape \(1, 9\)"),
            (
                {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.zeros(1, 3, 24, 24)},
                "leave pixel_values out",
            ),
        ):
            with pytest.raises(ValueError, match=words) as caught:
                model.generate(**call, max_new_tokens=2, **{name: copy.deepcopy(cache)})
            assert str(caught.value).count("\n") < 3
            assert len(str(caught.value)) < 300
        cut = copy.deepcopy(cache)
        cut.crop(3 - cut.get_seq_length())
        with pytest.raises(ValueError, match="the cache was cut to 3 tokens"):
            model(input_ids=ids[:, -1:], **{name: cut})
        empty = DynamicCache(config=model.config.get_text_config())
        model(input_ids=ids[:, -3:], **{name: empty})  # not of a pruned prompt: goes on as ever
        assert model(input_ids=ids[:, -1:], **{name: empty}).logits.shape[1] == 1


@pytest.mark.parametrize(
    "method, ratio, settings",
    [
        ("tango", 0.1, {}),
        ("holitom", 0.2, {}),
        ("holitom", 0.2, {"pruned_layer": 1, "positions": "trained"}),
        ("fastv", 0.7, {}),
        ("tango", 0.4, {"pruned_layer": 1, "llm_retention": 0.5, "causal": False}),
    ],
)
def test_threads(family, method, ratio, settings):
    model = family.model()
    prompts = [example(family) | family.pixels(seed=seed) for seed in range(4)]
    with attach(model, make_pruner(method, ratio, **settings)) as session:

        def ask(seed):
            ids = model.generate(**prompts[seed], max_new_tokens=4, do_sample=False)
            with torch.no_grad():
                logits = model(**prompts[seed]).logits
            return ids, logits, session.videos[0].indices

        expected, answers = [ask(seed) for seed in range(4)], {}

        def work(seed):
            answers[seed] = [ask(seed) for _ in range(3)]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(answers) == 4
    for seed, given in answers.items():
        for one in given:
            assert all(torch.equal(a, b) for a, b in zip(one, expected[seed], strict=True))


def test_another_thread_reads_the_latest_records(family):
    """As a program does that streams: generate() in a thread, the records in its own."""
    with attach(model := family.model(), Spy()) as session:
        thread = threading.Thread(target=lambda: model.generate(**example(family), max_new_tokens=1))
        thread.start()
        thread.join(60)
        assert session.videos[0].indices.tolist() == [0, 5, 17]


@pytest.mark.parametrize("method", ["tango", "fastv"])
def test_a_copy_is_a_plain_model(family, method):
    model, inputs = family.model(), example(family)
    with torch.no_grad():
        unpruned = model(**inputs).logits
        with attach(model, make_pruner(method, 0.5)):
            pruned = model(**inputs).logits
            copied = copy.deepcopy({"model": model})["model"]
            assert torch.equal(copied(**inputs).logits, unpruned)
            assert torch.equal(model(**inputs).logits, pruned)
            next(copied.parameters()).zero_()
            assert torch.equal(model(**inputs).logits, pruned)
            for save in (
                pickle.dumps,
                lambda model: torch.save(model, io.BytesIO()),
                lambda model: pickle.dumps([model]),
            ):
                with pytest.raises(RuntimeError, match="leave its context before you pickle"):
                    save(model)
            assert model.state_dict().keys() == copied.state_dict().keys()
        assert vars(copied).keys() == vars(model).keys()


def test_wrapped_while_attached(family):
    """accelerate wraps forward() of what it prepares: then the wrapper stays, and nothing is pruned any more."""
    model = family.model()
    inputs = example(family)
    with torch.no_grad():
        unpruned = model(**inputs).logits
        try:
            with attach(model, Spy()):
                own = model.forward
                model.forward = lambda *args, **kwargs: own(*args, **kwargs)
                assert model(**inputs).logits.shape[1] < unpruned.shape[1]
            assert "forward" in vars(model)
            assert torch.equal(model(**inputs).logits, unpruned)
        finally:
            vars(model).pop("forward", None)


@pytest.mark.parametrize("method", [name for name in REGISTRY if name not in INSIDE])
def test_gradients_reach_projector_and_tower(family, method, tmp_path):
    """With a decoder that is not trained; what they are is in tests/pruners/test_every_method.py."""
    model, inputs = family.build(tmp_path), example(family)
    family_of(model).language_model(model).requires_grad_(False)
    weights = family.projector(model), next(family.tower(model).parameters())
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, make_pruner(method, 0.5)) as session:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        kept = session.videos[0].indices
        with torch.no_grad():
            assert torch.equal(model(**inputs, labels=labels).loss, loss)
            assert torch.equal(session.videos[0].indices, kept)
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "method, settings",
    [("tango", {}), ("topk", {}), ("visionzip", {}), ("fastv", {}), ("holitom", {"pruned_layer": 1, "causal": False})],
)
def test_gradient_checkpointing(family, method, settings, reentrant, tmp_path):
    """Also where another prompt comes between, and where the pruner is gone when layers are computed again."""
    model, inputs = family.build(tmp_path).train(), example(family, 3)
    weights = family.projector(model), next(family.tower(model).parameters())
    pruner = make_pruner(method, 0.6, **settings)
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with attach(model, pruner) as session:
            if checkpointing and HOOKS_AGAIN and (settings or method in INSIDE):
                with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
                    model(**inputs, use_cache=False)
                return
            logits = model(**inputs, use_cache=False).logits
            assert session.videos[0].average_retention < 0.9
            model(**example(family), use_cache=False)
        logits.square().sum().backward()
        grads.append([weight.grad.clone() for weight in weights])
    for own, expected in zip(*grads, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("method", ["tango", "fastv"])
def test_compiled(family, method, tmp_path):
    model, inputs = family.build(tmp_path), example(family)
    pruner = make_pruner(method, 0.5)
    with torch.no_grad():
        with attach(model, pruner):
            expected = model(**inputs).logits
        torch._dynamo.reset()
        decoder = family_of(model).language_model(model)
        compiled = torch.compile(model, backend="eager")
        whole = compiled(**inputs).logits
        with attach(model, pruner):
            assert torch.equal(compiled(**inputs).logits, expected)
        with attach(compiled, pruner) as session:
            assert torch.equal(compiled(**inputs).logits, expected)
            compiled.generate(**inputs, max_new_tokens=2)
            assert session.videos
        assert torch.equal(compiled(**inputs).logits, whole)
        held = next(module for module in (model, model.model) if decoder in module.children())
        name = next(name for name, module in held.named_children() if module is decoder)
        setattr(held, name, torch.compile(decoder, backend="eager"))
        for _ in range(2):
            model(**inputs)
            with attach(model, pruner):
                assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("method", ["tango", "fastv"])
def test_static_cache_of_several_rows(family, method):
    model, inputs = family.model(), example(family, 3)
    settings = GREEDY | {"max_new_tokens": 5, "min_new_tokens": 5}
    with attach(model, make_pruner(method, 0.5)):
        dynamic = model.generate(**inputs, **settings)
        static = model.generate(**inputs, **settings, cache_implementation="static")
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["tango", "fastv", "visionzip"])
@pytest.mark.parametrize("where", ["cpu", "disk", "device_map", "device_map in parts"])
def test_offloaded(family, method, where, tmp_path):
    model, inputs = family.build(tmp_path), example(family)
    with torch.no_grad():
        with attach(model, make_pruner(method, 0.5)):
            expected, ids = model(**inputs).logits, model.generate(**inputs, max_new_tokens=3, do_sample=False)
        if where == "cpu":
            accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        elif where.startswith("device_map"):
            model.save_pretrained(tmp_path / "saved")
            children = [f"model.{name}" for name, _ in model.model.named_children()]
            children += [name for name, _ in model.named_children() if name not in ("model", "lm_head")]  # older Omni's
            devices = dict.fromkeys(children, "disk") | {"model.image_newline": "cpu", "lm_head": "cpu"}
            devices = devices if "parts" in where else {"": "disk"}
            folder = str(tmp_path / "weights")
            model = type(model).from_pretrained(tmp_path / "saved", device_map=devices, offload_folder=folder).eval()
            model.config._name_or_path = str(tmp_path)
        else:
            accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device=torch.device("cpu"))
        assert any(weight.is_meta for weight in model.parameters())
        with attach(model, make_pruner(method, 0.5)):
            assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), ids)
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("method", ["tango", "visionzip", "fastv"])
def test_lora(family, method, tmp_path):
    """Beside the weights, and merged into them; by PEFT's own model, which calls forward() past hooks."""
    model, inputs = family.build(tmp_path), example(family)
    pruner = make_pruner(method, 0.5)
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=r".*(q_proj|k_proj|qkv|fc1|linear_fc1)", init_lora_weights=False)
    with torch.no_grad():
        with attach(model, pruner):
            plain = model(**inputs).logits
        adapted = peft.get_peft_model(model, config).eval()
        with attach(adapted, pruner) as session:
            beside = adapted(**inputs).logits
            answer = adapted.generate(**inputs, max_new_tokens=2, do_sample=False)
            kept = session.videos[0].indices
        merged = adapted.merge_and_unload()
        with attach(merged, pruner) as session:
            torch.testing.assert_close(merged(**inputs).logits, beside, atol=1e-3, rtol=1e-3)
            assert torch.equal(merged.generate(**inputs, max_new_tokens=2, do_sample=False), answer)
            assert torch.equal(session.videos[0].indices, kept)
    assert beside.shape[1] < inputs["input_ids"].shape[1]
    assert beside.shape != plain.shape or (beside - plain).abs().max() > 0.01


class EightBits(nn.Linear):
    """As bitsandbytes has it: int8 of the right shape, and a scale of each row elsewhere."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight, self.bias = self.packed((weight / self.scale).round()), linear.bias

    def packed(self, codes):
        return nn.Parameter(codes.to(torch.int8), requires_grad=False)

    def codes(self):
        return self.weight

    def plain(self):
        return self.codes() * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.plain().to(x), self.bias)


class FourBits(EightBits):
    """As bitsandbytes has it: two codes a byte, in one column of another length."""

    def packed(self, codes):
        self.shape, codes = codes.shape, (codes / 18.2).round() + 8
        codes = codes.to(torch.uint8).flatten()
        return nn.Parameter((codes[::2] * 16 + codes[1::2])[:, None], requires_grad=False)

    def codes(self):
        pairs = torch.cat((self.weight // 16, self.weight % 16), 1)
        return (pairs.view(self.shape).float() - 8) * 18.2


@pytest.mark.parametrize("kind", [EightBits, FourBits])
def test_linear_layers_of_another_kind(family, kind, tmp_path):
    """Their `weight` is not what they compute with: as with plain layers of what it stands for."""
    model, inputs = family.build(tmp_path), example(family)
    plain = copy.deepcopy(model)
    changed = 0
    for module, other in zip(list(model.modules()), list(plain.modules()), strict=True):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, layer := kind(child))
                getattr(other, name).weight.data = layer.plain()
                changed += 1
    assert changed > 20
    with torch.no_grad():
        for method in ("visionzip", "tango", "fastv", "fastvid", "holitom"):
            with attach(model, make_pruner(method, 0.5)) as one, attach(plain, make_pruner(method, 0.5)) as two:
                torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
                assert torch.equal(one.videos[0].indices, two.videos[0].indices)


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(family, bits, tmp_path):
    """Layers of its own: the same tokens as with plain layers of what it makes of the weights, and they are pruned."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, inputs = family.build(tmp_path), example(family)
    plain = copy.deepcopy(model)
    for module, other in zip(list(model.modules()), list(plain.modules()), strict=True):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear or name == "lm_head":
                continue
            size, bias = (child.in_features, child.out_features), child.bias is not None
            if bits == 8:
                layer = bitsandbytes.nn.Linear8bitLt(*size, bias, has_fp16_weights=False)
            else:
                layer = bitsandbytes.nn.Linear4bit(*size, bias, compute_dtype=torch.float32, quant_type="nf4")
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer.to("cpu"))
            with torch.no_grad():
                own = layer(torch.eye(size[0])).T
            getattr(other, name).weight.data = own if child.bias is None else own - child.bias[:, None]
    with torch.no_grad():
        for method in ("visionzip", "tango", "fastv"):
            with attach(model, make_pruner(method, 0.5)) as one, attach(plain, make_pruner(method, 0.5)) as two:
                logits = model(**inputs).logits
                assert logits.shape == plain(**inputs).logits.shape
                shared = set(one.videos[0].indices.tolist()) & set(two.videos[0].indices.tolist())
                assert len(shared) >= 0.9 * len(two.videos[0].indices)


@pytest.mark.parametrize("side", ["left", "right"])
def test_shift_labels_follow_their_tokens(family, side):
    model = family.model()
    rows = [5, *family.video(), *QUESTION], [5, 6, *family.video(), 8, 3, 4]
    inputs = family.prompt(*rows, side=side) | family.pixels(2)
    labels = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], -100)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        for pruner in (Spy(), make_pruner("tango", 1.0)):
            with attach(model, pruner):
                expected = model(**inputs, labels=labels).loss
                assert torch.equal(model(**inputs, labels=labels, shift_labels=shifted).loss, expected)
                for name in ("labels", "shift_labels"):
                    with pytest.raises(ValueError, match=rf"^{name} has shape \(2, 7\); the prompt .* has \(2, "):
                        model(**inputs, **{name: labels[:, :7]})
        with attach(model, make_pruner("fastv", 0.5)), pytest.raises(ValueError, match="shift_labels do not work"):
            model(**inputs, shift_labels=shifted)


def test_assistants(family, tmp_path):
    model, other = family.model(), family.build(tmp_path, seed=3)
    text = family.prompt([5, 6, 7])
    with attach(other, Spy()), pytest.raises(ValueError, match=f"{type(other).__name__} has a pruner attached"):
        model.generate(**text, assistant_model=other, max_new_tokens=4)
    with attach(model, Spy()), pytest.raises(ValueError, match="assistant_model") as caught:
        model.generate(**example(family), assistant_model=other, max_new_tokens=4)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
