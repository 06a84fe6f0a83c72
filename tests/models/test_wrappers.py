"""Models that something else has wrapped or changed: adapters, hooks, subclasses, other threads, other precisions.

What is right is told by the model that nothing is attached to, which a ratio of 1 must equal to the bit, by a call that
nothing else takes part in, or by a refusal.
"""

import contextlib
import copy
import functools
import pickle
import threading
import types

import peft
import pytest
import torch
import torch.distributed
from accelerate.utils import extract_model_from_parallel
from families import Spy, make_pruner, outputs
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationMixin, StoppingCriteria, StoppingCriteriaList

from tango.models import attach
from tango.models.pooling_head import folded

PAST = "a video came past the pruner, and would not be pruned"


def example(family, seed=0):
    return family.prompt([5, *family.video(), 7, 8, 9]) | family.pixels(seed=seed)


def answer(model, inputs, **settings):
    return model.generate(**inputs, max_new_tokens=4, do_sample=False, **settings)


def same_as_unpruned(family, model, inputs=None):
    """A ratio of 1 gives what the model gives that nothing is attached to."""
    inputs = example(family) if inputs is None else inputs
    expected = outputs(model, inputs)
    with attach(model, make_pruner("tango", 1.0)) as session:
        actual = outputs(model, inputs)
        assert len(session.videos) == 1
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def halved(output):
    """What a module gave, halved: a tensor, or all tensors of floats in it."""
    if isinstance(output, torch.Tensor):
        return output / 2 if output.is_floating_point() else output
    if isinstance(output, list | tuple):
        return type(output)(map(halved, output))
    for name, value in output.items() if output is not None else ():
        output[name] = halved(value)
    return output


class Bystander(StoppingCriteria):
    """Does something after each token, and never stops."""

    def __init__(self, act):
        self.act = act

    def __call__(self, input_ids, scores, **kwargs):
        self.act()
        return torch.zeros(len(input_ids), dtype=torch.bool)


# -- calls that come another way -------------------------------------------------------------------------------------


def test_a_generate_of_the_users_own(family, tmp_path):
    """One that makes the prompt would not be pruned, and nothing would say so; by another name it is."""
    model, inputs = family.build(tmp_path), example(family)
    kind = type(model)

    class Own(kind):
        def generate(self, question=None, **settings):
            return super().generate(**question, **settings)

        def ask(self, question):
            return self.generate(**question, max_new_tokens=4, do_sample=False)

    with attach(model, Spy()):
        expected = answer(model, inputs)
    unpruned = answer(model, inputs)
    model.__class__ = Own
    with attach(model, Spy()), pytest.raises(ValueError, match=PAST):
        model.generate(inputs, max_new_tokens=4)
    assert torch.equal(model.generate(inputs, max_new_tokens=4, do_sample=False), unpruned)
    del Own.generate
    with attach(model, Spy()):
        assert torch.equal(model.ask(inputs), expected)


def test_a_generate_that_was_taken_before(family):
    model, inputs = family.model(), example(family)
    taken = model.generate
    expected = answer(model, inputs)
    with attach(model, Spy()):
        for call in (taken, functools.partial(GenerationMixin.generate, model)):
            with pytest.raises(ValueError, match=PAST):
                call(**inputs, max_new_tokens=2)
        assert taken(**family.prompt([5, 6, 7]), max_new_tokens=2).shape == (1, 5)
    assert torch.equal(taken(**inputs, max_new_tokens=4, do_sample=False), expected)


def test_a_forward_of_others(family, tmp_path):
    """As TRL's trainers put one on the model, which calls what is inside of it: right if it is there before."""
    model, inputs = family.build(tmp_path), example(family)

    def own(**kwargs):
        return model.lm_head(model.model(**kwargs).last_hidden_state)

    with torch.no_grad():
        unpruned = own(**inputs)
        with attach(model, make_pruner("tango", 0.4)):
            expected = model(**inputs).logits
            with pytest.raises(ValueError, match=PAST):
                own(**inputs)
            model.forward = own
            with pytest.raises(ValueError, match=PAST):
                model(**inputs)
        assert torch.equal(model(**inputs), unpruned)
        with attach(model, make_pruner("tango", 0.4)) as session:
            assert torch.equal(model(**inputs), expected)
            assert len(session.videos) == 1


@pytest.mark.parametrize("method", ["tango", "fastv"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_bystander_calls_the_model(family, method, use_cache):
    """A stopping criterion that asks the same model: text as text, and the outer call as if there were none."""
    model, inputs, text = family.model(), example(family), family.prompt([5, 6, 7])
    alone = model.generate(**text, max_new_tokens=2, do_sample=False)
    with torch.no_grad():
        logits = model(**text).logits
    seen = []

    def ask():
        seen.append(torch.equal(model.generate(**text, max_new_tokens=2, do_sample=False), alone))
        with torch.no_grad():
            seen.append(torch.equal(model(**text).logits, logits))

    with attach(model, make_pruner(method, 0.4)) as session:
        expected = answer(model, inputs, use_cache=use_cache)
        kept = session.videos[0].indices
        actual = answer(model, inputs, use_cache=use_cache, stopping_criteria=StoppingCriteriaList([Bystander(ask)]))
        assert torch.equal(actual, expected)
        assert torch.equal(session.videos[0].indices, kept)
        looks = StoppingCriteriaList([Bystander(lambda: model(**inputs))])
        with torch.no_grad(), pytest.raises(ValueError, match=PAST):
            answer(model, inputs, use_cache=use_cache, stopping_criteria=looks)
    assert seen and all(seen)


def test_arguments_without_names(family, tmp_path):
    """Of methods whose own signature has none."""
    model, inputs = family.build(tmp_path), example(family)
    ids, rest = inputs.pop("input_ids"), inputs
    kind = type(model)

    class Own(kind):
        def generate(self, *args, **kwargs):
            return super().generate(*args, **kwargs)

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    def run():
        with torch.no_grad(), attach(model, make_pruner("tango", 0.4)):
            found = model.generate(ids, **rest, max_new_tokens=3, do_sample=False), model(ids, **rest).logits
            with pytest.raises(TypeError, match=r"forward\(\) got 99 arguments without names"):
                model(*[None] * 99)
            return found

    expected = run()
    model.__class__ = Own
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_unwrapped_while_attached(family, tmp_path):
    """As accelerate's unwrap_model(keep_fp32_wrapper=False) does it: through all that wraps forward()."""
    model, inputs = family.build(tmp_path), example(family)
    with torch.no_grad():
        unpruned = model(**inputs).logits
        with attach(model, Spy()):
            expected = model(**inputs).logits
        for prepared_inside in (False, True):
            with contextlib.ExitStack() as inside:
                if prepared_inside:
                    inside.enter_context(attach(model, Spy()))
                own = model.forward
                model._original_forward, model.forward = own, functools.wraps(own)(lambda own=own, **kw: own(**kw))
                if not prepared_inside:
                    inside.enter_context(attach(model, Spy()))
                extract_model_from_parallel(model, keep_fp32_wrapper=False)
                assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(model(**inputs).logits, unpruned)
            vars(model).pop("forward")


@pytest.mark.parametrize("method", ["tango", "fastv"])
def test_going_on_from_outputs_as_a_tuple(family, method):
    model = family.model()
    inputs = family.prompt([5, *family.video(), 7, 8, 9], [5, *family.video(), 4]) | family.pixels(2)
    name = "cache" if "cache" in type(family_decoder(model)).forward.__code__.co_varnames else "past_key_values"
    mask = nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
    found = []
    with torch.no_grad(), attach(model, make_pruner(method, 0.4)):
        for return_dict in (True, False):
            output = model(**inputs, use_cache=True, return_dict=return_dict)
            parts = output.values() if return_dict else output
            cache = next(part for part in parts if hasattr(part, "get_seq_length"))
            found.append(model(input_ids=torch.tensor([[11, 12]] * 2), attention_mask=mask, **{name: cache}).logits)
    assert torch.equal(*found)


def family_decoder(model):
    return model.get_decoder()


# -- parts that are replaced -----------------------------------------------------------------------------------------


def test_a_tower_of_its_own_that_comes_later(family, tmp_path):
    """Kept tokens would be those of the tower that was there before."""
    for name in "ab":
        (tmp_path / name).mkdir()
    model, other = family.build(tmp_path / "a"), family.build(tmp_path / "b", seed=3)
    tower, inputs = family.tower(model), example(family)
    holder, name = next((m, n) for m in model.modules() for n, child in m.named_children() if child is tower)
    with torch.no_grad(), attach(model, make_pruner("tango", 0.4)):
        model(**inputs)
        setattr(holder, name, family.tower(other))
        for call in (model, model.generate):
            with pytest.raises(RuntimeError, match="the vision tower was replaced since the pruner was attached"):
                call(**inputs)
    same_as_unpruned(family, model)


def test_layers_that_come_later(family, tmp_path):
    """Pruning inside the language model would not happen."""
    for name in "ab":
        (tmp_path / name).mkdir()
    model, other = family.build(tmp_path / "a"), family.build(tmp_path / "b", seed=3)
    inputs = example(family)
    if not family.inside:
        pytest.skip("no method prunes inside its decoder")
    with torch.no_grad(), attach(model, make_pruner("fastv", 0.4)):
        model(**inputs)
        family_decoder(model).layers = family_decoder(other).layers
        for call in (model, model.generate):
            with pytest.raises(RuntimeError, match="the language model was replaced since the pruner was attached"):
                call(**inputs)
    with torch.no_grad(), attach(model, make_pruner("fastv", 0.4)) as session:
        model(**inputs)
        assert session.videos[0].average_retention < 0.9


@pytest.mark.parametrize("method", ["tango", "fastv"])
def test_adapters_that_are_switched(family, method, tmp_path):
    """Also such as keep a part of their own (modules_to_save): as if attached after the switch, or refused."""
    model, inputs = family.build(tmp_path), example(family)
    tower = family.tower(model)
    name = next(name for name, module in model.named_modules() if module is tower).rpartition(".")[2]
    settings = {"target_modules": r".*\.q_proj", "modules_to_save": [name], "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.add_adapter("b", peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(0)
    for own, parameter in adapted.named_parameters():
        if "modules_to_save" in own:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapted.eval()
    expected = {}
    for adapter in ("default", "b"):
        adapted.set_adapter(adapter)
        with attach(adapted, make_pruner(method, 0.4)):
            expected[adapter] = outputs(adapted, inputs)
    assert expected["b"][1].shape != expected["default"][1].shape or not torch.equal(*(e[1] for e in expected.values()))
    with attach(adapted, make_pruner(method, 0.4)):
        for adapter in ("default", "b", "default"):
            adapted.set_adapter(adapter)
            assert all(torch.equal(a, b) for a, b in zip(outputs(adapted, inputs), expected[adapter], strict=True))


def test_a_part_is_not_copied_while_it_is_hooked(family):
    if not family.inside:
        pytest.skip("no method prunes inside its decoder")
    model = family.model()
    with attach(model, make_pruner("fastv", 0.4)):
        for part in (family_decoder(model), model.model):
            for copied in (copy.deepcopy, pickle.dumps):
                with pytest.raises(RuntimeError, match="leave its context before you copy or pickle a part of the mod"):
                    copied(part)
    copy.deepcopy(family_decoder(model))


# -- what changes the features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["tower", "tower's forward", "projector", "embeddings"])
def test_hooks_that_change_what_a_module_gives(family, where, tmp_path):
    model = family.build(tmp_path)
    plain = outputs(model, example(family))
    weight = family.projector(model)
    projector = next(module for module in model.modules() if getattr(module, "weight", None) is weight)
    modules = {"projector": projector, "embeddings": model.get_input_embeddings()}
    module = modules.get(where, family.tower(model))
    if where == "tower's forward":
        own = module.forward
        module.forward = lambda *args, **kwargs: halved(own(*args, **kwargs))
    else:
        module.register_forward_hook(lambda module, args, output: halved(output))
    same_as_unpruned(family, model)
    assert not torch.equal(outputs(model, example(family))[1], plain[1])


@pytest.mark.parametrize("name", ["get_video_features", "apply_pooling"])
@pytest.mark.parametrize("on_class", [False, True])
def test_methods_of_the_users_own(models, monkeypatch, name, on_class):
    """Those of LLaVA's that are not called while a pruner is attached."""
    core = models().model
    target = type(core) if on_class else core
    own = getattr(target, name)
    monkeypatch.setattr(target, name, functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs)), raising=False)
    with pytest.raises(TypeError, match=rf"{name}\(\) of this LlavaOnevisionModel is not transformers' own"):
        attach(models(), Spy()).__enter__()
    monkeypatch.undo()
    with attach(models(), Spy()):
        pass


def test_autocast(family):
    with torch.autocast("cpu", torch.bfloat16):
        same_as_unpruned(family, family.model())


def test_half_precision_of_a_trained_model():
    """Its states are large enough for sums to be rounded unlike in another layout."""
    model = AutoModelForImageTextToText.from_pretrained("checkpoints/tango-tiny", dtype=torch.bfloat16).eval()
    vision = model.config.vision_config
    side = -(-(vision.image_size // vision.patch_size) // 2)
    ids = torch.tensor([[5, *[model.config.video_token_id] * (8 * side**2 + 1), 7, 8]])
    pixels = torch.randn(1, 8, 3, vision.image_size, vision.image_size, generator=torch.Generator().manual_seed(0))
    same_as_unpruned(None, model, {"input_ids": ids, "pixel_values_videos": pixels.bfloat16()})


def test_pooling_head_of_packed_tensors(model):
    """As torchao has them: they are taken for what they stand for."""
    from tiny_llava import make_head

    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor

        def detach(self):
            return self

        def dequantize(self):
            return self.tensor

    config = model.config.vision_config
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in make_head(config).items()}
    plain, packed = (folded(x, config) for x in (tensors, {n: Packed(t) for n, t in tensors.items()}))
    assert plain.tensors.keys() == packed.tensors.keys()
    assert all(torch.equal(plain.tensors[name], packed.tensors[name]) for name in plain.tensors)


# -- threads ---------------------------------------------------------------------------------------------------------


def test_the_tower_is_used_in_another_thread(family, tmp_path):
    """By another model that shares it, or to encode ahead: that is not taken for the video's."""
    model, inputs, seen = family.build(tmp_path), example(family), []
    main = threading.get_ident()

    def beside(tower, args, kwargs, output):
        if threading.get_ident() == main:
            other = {name: -x if x.is_floating_point() else x for name, x in kwargs.items() if torch.is_tensor(x)}
            thread = threading.Thread(target=torch.no_grad()(tower), args=[-args[0], *args[1:]] if args else (),
                                      kwargs=kwargs | other)  # fmt: skip
            thread.start()
            thread.join()
            seen.append(tower)

    found = []
    for hooked in (False, True):
        if hooked:
            family.tower(model).register_forward_hook(beside, with_kwargs=True)
        spy = Spy(wanted=frozenset({"saliency", "keys"}))
        with torch.no_grad(), attach(model, spy):
            model(**inputs)
        found.append(spy.calls[0])
    assert seen
    for name in ("features", "saliency", "keys"):
        assert torch.equal(found[0][name], found[1][name])


def test_two_threads_enter_at_once(family):
    model, both, told = family.model(), threading.Barrier(2), []

    class Late(Spy):
        def in_llm(self, layers):  # after the first look whether a pruner is attached
            both.wait(10)
            return super().in_llm(layers)

    def enter():
        try:
            with attach(model, Late()):
                both.wait(10)
                told.append("entered")
        except RuntimeError as error:
            told.append(str(error))
            both.wait(10)

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(told)[1] == "entered"
    assert sorted(told)[0].startswith("a pruner (spy) is attached")
    assert not {"generate", "forward"} & vars(model).keys()


# -- wrappers --------------------------------------------------------------------------------------------------------


def test_wrappers_are_told_where_to_attach(family):
    model = family.model()
    name = type(model).__name__
    pipeline = types.SimpleNamespace(model=model)
    for wrapper, path in ((nn.Sequential(nn.Identity(), model), "1"), (pipeline, "model")):
        told = f"no pruning for {type(wrapper).__name__}, but for the {name} in it: attach to its .{path}$"
        with pytest.raises(TypeError, match=told):
            attach(wrapper, Spy()).__enter__()


def test_distributed(family, tmp_path):
    """DistributedDataParallel's module, and FSDP2's model, whose class is derived from the model's."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    inputs = example(family)
    for name in "ab":
        (tmp_path / name).mkdir()
    with torch.no_grad(), attach(model := family.build(tmp_path / "a"), make_pruner("tango", 0.4)):
        expected = model(**inputs).logits
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(TypeError, match=r"in it: attach to its \.module$"):
            attach(parallel, Spy()).__enter__()
        sharded = family.build(tmp_path / "b")
        for layer in family_decoder(sharded).layers:
            fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        for held, called in ((model, parallel), (sharded, sharded)):
            with torch.no_grad(), attach(held, make_pruner("tango", 0.4)):
                assert torch.equal(called(**inputs).logits, expected)
    finally:
        torch.distributed.destroy_process_group()


def test_virtual_tokens(tmp_path):
    """PEFT's prompt tuning: forward() is pruned, generate() says why not."""
    from families import FAMILIES

    family = FAMILIES["llava_onevision"]
    inputs = example(family)
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ):
        adapted = peft.get_peft_model(family.build(tmp_path), config).eval()
        with torch.no_grad():
            expected = adapted(**inputs).logits
            with attach(adapted, make_pruner("tango", 1.0)):
                with pytest.raises(ValueError, match="virtual tokens do not work with generate"):
                    adapted.generate(**inputs, max_new_tokens=2)
                if isinstance(config, peft.PrefixTuningConfig):
                    with pytest.raises(ValueError, match="prefix tuning, which fills it, does not work here"):
                        adapted(**inputs)
                else:
                    assert torch.equal(adapted(**inputs).logits, expected)
