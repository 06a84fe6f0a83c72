"""What cannot be served as asked is refused when the engine starts, with the reason."""

import shutil
from types import SimpleNamespace

import pytest
import tango_vllm
from engines import MODEL, OURS, opened
from tango_vllm import runner, settings

from tango.models.llava_onevision import LlavaOnevision
from tango.models.qwen_vl import QwenVL
from tango.pruners import REGISTRY
from tango.runs.settings import SettingsError


@pytest.mark.parametrize("wrapper, args, said", [
    ("nothing", "", "there is no such method; use one of"),
    ("tango", "retention_ratio=0", "retention_ratio"),
    ("tango", "retention_ratio=1.5", "retention_ratio"),
    ("tango", "ratio=0.1", "has no field 'ratio'"),
    ("", "retention_ratio=0.1", "WRAPPER is not"),
    ("random", "", "random draws by a video's place"),
])  # fmt: skip
def test_the_environment(monkeypatch, wrapper, args, said):
    monkeypatch.setenv("WRAPPER", wrapper)
    monkeypatch.setenv("TANGO_ARGS", args)
    with pytest.raises(SettingsError, match=said):
        tango_vllm.register()


@pytest.mark.parametrize("config, gapless, said", [
    ({"method": "fastv"}, True, "fastv with these settings prunes inside the language model"),
    ({"method": "holitom", "pruned_layer": 2}, True, "prunes inside the language model"),
    ({"method": "tango", "keep_positions": True}, True, "without gaps"),
    ({"method": "tango", "tower_reuse": "pixels"}, True, "tower_reuse='pixels' computes less in the vision tower"),
    ({"method": "earlytom"}, True, "earlytom computes less in the vision tower"),
    ({"method": "fastvid"}, True, "without gaps; set keep_positions=false"),
    ({"method": "tango", "saliency": "pooling_head"}, False, "this model has global_query"),
    ({"method": "tango", "positions": "transformers"}, False, "trained with"),
    ({"method": "nothing"}, True, "there is no such method"),
    ({"method": "vanilla"}, True, "no method is chosen"),
    ({"ratio": 3}, True, "expected {"),
])  # fmt: skip
def test_hf_overrides(config, gapless, said):
    class Config:
        tango = config

    def start():
        pruner = settings.from_environment_or_config(Config)
        settings.check(pruner, 4, (LlavaOnevision if gapless else QwenVL).saliencies, gapless=gapless)

    with pytest.raises(SettingsError, match=said):
        start()


def test_every_other_method_is_served():
    for name in {*REGISTRY} - {"random", "fastv", "earlytom"}:
        pruner = settings.from_environment_or_config(
            type("Config", (), {"tango": {"method": name, "keep_positions": False}})
        )
        assert pruner.exact_budget
        settings.check(pruner, 4, LlavaOnevision.saliencies, gapless=True)


@pytest.mark.parametrize("name", ["InternVLChatModel", "VideoLlama3ForConditionalGeneration"])
def test_other_models_are_refused_by_the_name_in_their_checkpoint(name):
    """Not by that of the class that vLLM runs them with, which may be another."""
    config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[name]))
    with pytest.raises(ValueError, match=f"WRAPPER is set, but {name} cannot be pruned in vLLM; these can: Llava"):
        runner._refuse(SimpleNamespace(get_model=object, model_config=config))


def test_a_checkpoint_without_pooling_head(tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(MODEL, folder)
    (folder / "pooling_head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="pooling head"), opened(folder, OURS):
        pass


def test_an_untested_version(monkeypatch):
    monkeypatch.setattr(tango_vllm, "_version", lambda name: "0.33.0")
    with pytest.raises(RuntimeError, match=r"vLLM 0\.33\.0 is installed; tango-vllm is tested with 0\.32\.0"):
        tango_vllm.check_version()
