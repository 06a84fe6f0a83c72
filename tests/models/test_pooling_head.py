"""Where the pooling head is read from, and what one is told when it is not there."""

import json
import shutil

import peft
import pytest
import torch
from families import Spy
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_llava import build_model, make_pruner, pixels, prompt, video
from transformers import SiglipVisionConfig

from tango.models import attach, pooling_head
from tango.models.pooling_head import ATTENTION_TENSORS, tensor_shapes
from tango.models.tower import PoolingHead


def saliency(model, **settings):
    spy = Spy(wanted=frozenset({"saliency"}), **settings)
    with torch.no_grad(), attach(model, spy):
        model(**prompt([5, *video(), 7]), pixel_values_videos=pixels(1))
    return spy.calls[0]["saliency"]


@pytest.fixture
def away(tmp_path):
    """A model without its head beside it, the saliency it should have, the head's tensors, and a folder."""
    home = tmp_path / "checkpoint"
    home.mkdir()
    model = build_model(home)
    expected = saliency(model)
    tensors = load_file(home / "pooling_head.safetensors")
    (home / "pooling_head.safetensors").unlink()
    return model, expected, tensors, tmp_path


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """A hub of local files: {repository: {file: path}}; nothing here goes over a network."""
    repositories, fetched = {}, []

    def download(repository, file):
        if repository not in repositories:
            raise LocalEntryNotFoundError("no network")
        if file not in repositories[repository]:
            raise EntryNotFoundError(f"no {file}")
        fetched.append(file)
        return str(repositories[repository][file])

    monkeypatch.setattr(pooling_head, "hf_hub_download", download)
    repositories["fetched"] = fetched
    return repositories


def test_a_file(away):
    model, expected, tensors, folder = away
    for prefix in ("", "vision_model.", "model.vision_tower.vision_model.", "model.vision_tower."):
        named = {prefix + name.removeprefix("vision_model."): value for name, value in tensors.items()}
        save_file(named | {"text_model.embeddings": torch.zeros(3)}, folder / "any name.safetensors")
        assert torch.equal(saliency(model, saliency_weights=str(folder / "any name.safetensors")), expected)


def test_a_folder(away):
    model, expected, tensors, folder = away
    save_file(tensors, folder / "pooling_head.safetensors")
    assert torch.equal(saliency(model, saliency_weights=str(folder)), expected)
    shutil.move(folder / "pooling_head.safetensors", folder / "model.safetensors")
    assert torch.equal(saliency(model, saliency_weights=str(folder)), expected)


def test_sharded(away):
    """Shards without the head are not opened: here they do not even exist."""
    model, expected, tensors, folder = away
    home = folder / "checkpoint"
    tensors = {f"model.vision_tower.{name}": value for name, value in tensors.items()}
    save_file(tensors, home / "model-00002-of-00002.safetensors")
    index = dict.fromkeys(tensors, "model-00002-of-00002.safetensors")
    index["model.language_model.norm.weight"] = "model-00001-of-00002.safetensors"
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(saliency(model), expected)  # beside the checkpoint
    assert torch.equal(saliency(model, saliency_weights=str(home)), expected)
    (home / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the index of a sharded safetensors checkpoint"):
        saliency(model)


def test_hub(away, hub):
    model, expected, tensors, folder = away
    save_file(tensors, folder / "model.safetensors")
    hub["some/siglip"] = {"model.safetensors": folder / "model.safetensors"}
    assert torch.equal(saliency(model, saliency_weights="some/siglip"), expected)

    index = folder / "index.json"
    weights = dict.fromkeys(tensors, "b.safetensors") | {"text_model.norm": "a.safetensors"}
    index.write_text(json.dumps({"weight_map": weights}))
    hub["some/sharded"] = {"model.safetensors.index.json": index, "b.safetensors": folder / "model.safetensors"}
    hub["fetched"].clear()
    assert torch.equal(saliency(model, saliency_weights="some/sharded"), expected)
    assert hub["fetched"] == ["model.safetensors.index.json", "b.safetensors"]

    # The checkpoint itself came from the hub, with the head beside it.
    model.config._name_or_path = "some/llava"
    hub["some/llava"] = {"pooling_head.safetensors": folder / "model.safetensors"}
    assert torch.equal(saliency(model), expected)


def test_default_checkpoint(hub, tmp_path):
    """google/siglip-so400m-patch14-384 is only asked for a tower of its dimensions."""
    config = SiglipVisionConfig(**(pooling_head.DEFAULT_DIMENSIONS | {"vision_use_head": False}))

    class Tower:
        pass

    tower = Tower()
    tower.config = config
    shapes = tensor_shapes(config)
    save_file({name: torch.zeros(shapes[name]) for name in ATTENTION_TENSORS}, tmp_path / "model.safetensors")
    hub["google/siglip-so400m-patch14-384"] = {"model.safetensors": tmp_path / "model.safetensors"}
    hub["fetched"].clear()
    assert isinstance(pooling_head.load_pooling_head(tower, "llava-hf/some-ov", None, False), PoolingHead)
    assert hub["fetched"] == ["model.safetensors"]
    del hub["google/siglip-so400m-patch14-384"]
    with pytest.raises(FileNotFoundError, match=r"hf download google/siglip-so400m-patch14-384 "):
        pooling_head.load_pooling_head(tower, "llava-hf/some-ov", None, False)
    config.image_size = 224
    with pytest.raises(FileNotFoundError) as error:
        pooling_head.load_pooling_head(tower, "llava-hf/some-ov", None, False)
    assert "google" not in str(error.value)


def test_a_tower_with_its_head(tmp_path):
    model = build_model(tmp_path, vision_use_head=True)
    beside = tmp_path / "pooling_head.safetensors"
    own = saliency(model)
    tensors = {f"vision_model.{name}": value.clone() for name, value in model.model.vision_tower.state_dict().items()}
    save_file({name: value for name, value in tensors.items() if pooling_head.is_head(name)}, beside)
    assert torch.equal(saliency(model, saliency_weights=str(beside)), own)
    build_model(tmp_path)  # writes another head there, which only counts if one asks for it
    assert torch.equal(saliency(model), own)
    assert not torch.allclose(saliency(model, saliency_weights=str(beside)), own, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_head_of_its_own_that_is_quantized(tmp_path, dtype):
    def quantize(module, name):
        setattr(module, name, torch.nn.Parameter(getattr(module, name).detach().to(dtype), requires_grad=False))

    model = build_model(tmp_path, vision_use_head=True)
    head = model.model.vision_tower.head
    quantize(head.mlp.fc2, "weight")
    with make_pruner("tango", 0.3)(model):
        pass  # which needs the head's attention alone
    with pytest.raises(ValueError, match=r"quantized or has an adapter \(head.mlp.fc2.weight\).* saliency_weights"):
        make_pruner("fastvid", 0.3)(model).__enter__()
    quantize(head.attention, "in_proj_weight")
    with pytest.raises(ValueError, match=r"\(head.attention.in_proj_weight\)") as caught:
        make_pruner("tango", 0.3)(model).__enter__()
    assert "\n" not in str(caught.value)
    with make_pruner("fastvid", 0.3, saliency_weights=str(tmp_path))(model):
        pass


def test_a_head_of_its_own_with_an_adapter(tmp_path):
    model = build_model(tmp_path, vision_use_head=True)
    plain = saliency(model)
    config = peft.LoraConfig(target_modules=r".*head.mlp.fc1|.*head.attention", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    with pytest.raises(ValueError, match="quantized or has an adapter"):
        saliency(adapted)
    assert not torch.allclose(saliency(adapted.merge_and_unload()), plain, rtol=1e-3)


def test_read_once_for_each_attachment(models, monkeypatch):
    """Only the tensors that are needed, when the context opens, and nothing kept after it."""
    model, read = models(), []
    original = pooling_head.read
    monkeypatch.setattr(pooling_head, "read", lambda *args: read.append(tuple(args[1])) or original(*args))
    inputs = prompt([5, *video(), 7]) | {"pixel_values_videos": pixels(1)}
    with make_pruner("tango", 0.3)(model):
        assert read == [ATTENTION_TENSORS]
        model.generate(**inputs, max_new_tokens=2)
        model.generate(**inputs, max_new_tokens=2)
    assert len(read) == 1
    with make_pruner("tango", 0.3, segmentation="fastvid")(model):
        model.generate(**inputs, max_new_tokens=2)
    assert len(read) == 2 and len(read[1]) == 13


def test_missing(away):
    model, _, _, folder = away
    with pytest.raises(FileNotFoundError) as error:
        saliency(model)
    assert str(folder / "checkpoint") in str(error.value)
    for part in ("width 32", "saliency_weights=", "pooling_head.safetensors", "global_query"):
        assert part in str(error.value)
    for given in (str(folder), "some/siglip", "/not/here.safetensors", "no such hub id!"):
        with pytest.raises(FileNotFoundError, match="Not found in: "):
            saliency(model, saliency_weights=given)
    model.config._name_or_path = ""
    with pytest.raises(FileNotFoundError, match="the model was not loaded from a folder"):
        saliency(model)
    assert saliency(model, saliency="global_query").shape == (4, 9)


def test_unfit(away):
    model, _, tensors, folder = away
    file = folder / "head.safetensors"
    save_file({name: value for name, value in tensors.items() if "in_proj_bias" not in name}, file)
    with pytest.raises(ValueError, match=r"not whole; missing: vision_model.head.attention.in_proj_bias"):
        saliency(model, saliency_weights=str(file))
    save_file(tensors | {"vision_model.head.probe": torch.zeros(1, 1, 16)}, file)
    with pytest.raises(ValueError, match=r"head.probe in .* has shape \(1, 1, 16\), and .* tower needs \(1, 1, 32\)"):
        saliency(model, saliency_weights=str(file))
    save_file({"vision_model.something": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"no SigLIP pooling head in .*head.safetensors"):
        saliency(model, saliency_weights=str(file))
    torch.save(tensors, folder / "pickled.bin")
    with pytest.raises(ValueError, match=r"pickled.bin is not a safetensors file .* no other format is read"):
        saliency(model, saliency_weights=str(folder / "pickled.bin"))
    whole = save_file(tensors, file) or file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"head.safetensors"):
        saliency(model, saliency_weights=str(file))
