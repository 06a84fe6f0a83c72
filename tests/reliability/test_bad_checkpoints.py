"""Checkpoints that are not as they should be: the shipped one with a file taken away, damaged or put in its place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import ROOT, SHIPPED
from safetensors.torch import load_file, save_file

from tango import Tango
from tango.cli import main
from tango.inference.chat import Chat
from tango.inference.checkpoints import CheckpointError, load

GROUP = "Checkpoints"
WHOLE = ROOT / "checkpoints/tango-tiny"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KEPT = "nothing was started: it is told before anything is computed"
Seen = Callable[[str, str], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped checkpoint, of links."""
    made = tmp_path / "model"
    made.mkdir()
    for file in WHOLE.iterdir():
        (made / file.name).symlink_to(file)
    return made


def write(folder: Path, name: str, content: bytes | str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def change(folder: Path, name: str, **fields: Any) -> None:
    write(folder, name, json.dumps(json.loads((folder / name).read_text()) | fields))


def weigh(folder: Path, make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = make(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def other_class(folder: Path) -> None:
    change(folder, "config.json", architectures=["BertModel"], model_type="bert")


def layer_less(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    text["num_hidden_layers"] -= 1
    text.pop("layer_types", None)
    change(folder, "config.json", text_config=text)


def narrower(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in tensors if "embed_tokens" in name)
    return tensors | {name: tensors[name][:, :8].contiguous()}


def shard_gone(folder: Path) -> None:
    write(folder, INDEX, json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-2.safetensors"}}))
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def trapped(folder: Path) -> None:
    torch.save({"lm_head.weight": Trap(folder.with_name("it ran"))}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def remote_code(folder: Path) -> None:
    write(folder, "own.py", f"import os\nos.mkdir({str(folder.with_name('it ran'))!r})\nclass Own: pass\n")
    auto = {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}
    for name in ("processor_config.json", "tokenizer_config.json"):
        change(folder, name, **auto)


def remote_model(folder: Path) -> None:
    write(folder, "own.py", f"import os\nos.mkdir({str(folder.with_name('it ran'))!r})\nclass Own: pass\n")
    change(folder, "config.json", architectures=["Own"], auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})


def config(part: str = "", **fields: Any) -> Callable[[Path], None]:
    """A change of config.json, or of a part of it."""

    def make(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        change(folder, "config.json", **({part: held[part] | fields} if part else fields))

    return make


def elsewhere(name: str) -> Callable[[Path], None]:
    """An index that names the whole weights, but in a file beside the folder, or one that is pickled."""

    def make(folder: Path) -> None:
        write(folder, name, (WHOLE / WEIGHTS).read_bytes())
        names = dict.fromkeys(load_file(folder / WEIGHTS), name)
        (folder / WEIGHTS).unlink()
        write(folder, INDEX, json.dumps({"metadata": {}, "weight_map": names}))

    return make


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: write(folder, "chat_template.jinja", text)


LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + 3 * "{% endfor %}"


def no_letters(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def processor(part: str | None, **fields: Any) -> Callable[[Path], None]:
    """Changes fields of a part of processor_config.json, or of all of it."""

    def make(folder: Path) -> None:
        whole = json.loads((folder / "processor_config.json").read_text())
        change(folder, "processor_config.json", **({part: whole[part] | fields} if part else fields))

    return make


def fault(make: Callable[[Path], object], told: str, case: str, injected: str) -> object:
    return pytest.param(make, told, marks=pytest.mark.fault(case, injected), id=case)


FAULTS = [
    fault(gone, "no such folder", "missing", "a folder that is not there"),
    fault(lambda folder: (folder / "config.json").unlink(), "no config.json", "no config.json", "the file removed"),
    fault(lambda folder: write(folder, "config.json", '{"architectures": ['), "not a valid JSON", "torn config.json",
          "its first 19 bytes"),
    fault(lambda folder: write(folder, "config.json", "[1]"), "config.json holds no mapping", "odd config.json",
          "a list in its place"),
    fault(other_class, "holds BertModel", "wrong architecture", "`architectures` says BertModel"),
    fault(lambda folder: (folder / WEIGHTS).unlink(), "holds no weights", "no weights", "model.safetensors removed"),
    fault(lambda folder: write(folder, WEIGHTS, (WHOLE / WEIGHTS).read_bytes()[:99999]), "its weights: Error",
          "truncated weights", "the first 99999 bytes of model.safetensors"),
    fault(lambda folder: write(folder, WEIGHTS, b"\xff" * 4096), "cannot be loaded", "corrupt weights",
          "model.safetensors full of 0xff"),
    fault(lambda folder: weigh(folder, lambda tensors: {k: v for k, v in tensors.items() if "layers.0" not in k}),
          "tensors are missing", "tensors missing", "weights without those of the first layers"),
    fault(lambda folder: weigh(folder, narrower), "of another shape", "tensors of another shape",
          "embeddings of 8 columns"),
    fault(layer_less, "tensors are of no use", "more layers than its config.json", "config.json with one layer less"),
    fault(shard_gone, "model-00002-of-2.safetensors", "a shard missing", "an index that names an absent file"),
    fault(lambda folder: (write(folder, INDEX, "{"), (folder / WEIGHTS).unlink()), "is not the index of", "torn index",
          "model.safetensors.index.json of one byte"),
    fault(pickled, "pickled weights can run code and are not read", "pickled weights",
          "pytorch_model.bin in place of model.safetensors"),
    fault(trapped, "pickled weights can run code and are not read", "pickled weights with code in them",
          "pytorch_model.bin that makes a folder when unpickled: the folder is not made"),
    fault(remote_code, "brings along, which is not run", "remote code: processor",
          "`auto_map` names a module that makes a folder when imported: the folder is not made"),
    fault(remote_model, "holds Own", "remote code: model", "the same in config.json"),
    fault(no_letters, "tokenizer.json is missing", "no tokenizer", "tokenizer.json removed"),
    fault(lambda folder: write(folder, "tokenizer.json", "{"), "cannot be loaded", "torn tokenizer", "its first byte"),
    fault(lambda folder: write(folder, "chat_template.jinja", "{% for x in y %}"), "chat template cannot be used",
          "broken chat template", "a loop without an end"),
    fault(template("{{ 1 / 0 }}"), "division by zero", "chat template that divides by zero", "`{{ 1 / 0 }}`"),
    fault(template(LOOPS), "did not end within 3 s", "endless chat template", "three nested loops of 99999 steps each"),
    fault(template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "maximum recursion depth",
          "chat template without an end", "a macro that calls itself"),
    fault(template("{{ messages[0].content[1].text }}"), "a prompt with 0 <video>", "chat template without videos",
          "one that writes the question alone"),
    fault(config("text_config", num_attention_heads=0), "text_config.num_attention_heads = 0; expected a whole number",
          "config.json: no heads", "`num_attention_heads` 0"),
    fault(config("vision_config", patch_size=0), "vision_config.patch_size = 0; expected a whole number",
          "config.json: no patch", "`patch_size` 0"),
    fault(config("text_config", hidden_act="nope"), "text_config.hidden_act = 'nope'; expected an activation",
          "config.json: unknown activation", "`hidden_act` nope"),
    fault(config("text_config", rope_parameters={"rope_type": "nope"}), "config.json: KeyError: 'nope'",
          "config.json: unknown rotary embedding", "`rope_type` nope"),
    fault(config(dtype="float8_e4m3fn"), "dtype = 'float8_e4m3fn'; expected one of float16",
          "config.json: float8", "`dtype` float8_e4m3fn"),
    fault(config(architectures=[5]), "architectures = [5]; expected a list of names", "config.json: a number as class",
          "`architectures` [5]"),
    fault(config("text_config", num_hidden_layers=10**7), "num_hidden_layers = 10000000; expected a whole",
          "config.json: ten million layers", "`num_hidden_layers` 10**7"),
    fault(config("vision_config", num_hidden_layers=10**7), "num_hidden_layers = 10000000; expected a whole",
          "config.json: ten million layers of the tower", "the same of `vision_config`"),
    fault(config(text_config=None), "describes 11,445,077,952 parameters; they hold", "config.json of another model",
          "`text_config` null, which stands for a model of 7 billion parameters"),
    fault(config(vision_feature_layer=99), "vision_feature_layer = 99; expected a layer of the 3",
          "config.json: a layer that is not there", "`vision_feature_layer` 99"),
    fault(config(quantization_config=5), "config.json: AttributeError: 'int' object", "config.json: odd quantization",
          "`quantization_config` 5"),
    fault(lambda folder: write(folder, "config.json", "[" * 99999), "config.json: RecursionError", "deep config.json",
          "99999 open brackets"),
    fault(lambda folder: change(folder, "processor_config.json", processor_class="Nope"), "gives a Qwen2Tokenizer",
          "unknown processor", "`processor_class` Nope"),
    fault(lambda folder: write(folder, "processor_config.json", "[1]"), "processor_config.json holds no mapping",
          "odd processor", "a list in place of processor_config.json"),
    fault(lambda folder: write(folder, "generation_config.json", "[1]"), "generation_config.json holds no mapping",
          "odd generation_config.json", "a list in its place"),
    fault(lambda folder: change(folder, "generation_config.json", num_beams=0), "num_beams = 0; expected a whole",
          "generation_config.json: no beams", "`num_beams` 0"),
    fault(lambda folder: change(folder, "generation_config.json", eos_token_id="x"), "eos_token_id = 'x'; expected a",
          "generation_config.json: a word as token", "`eos_token_id` x"),
    fault(lambda folder: change(folder, "generation_config.json", eos_token_id=[0, 10**9]),
          "eos_token_id = [0, 1000000000]; expected tokens of the model, which are numbered 0 to",
          "generation_config.json: a token beyond the vocabulary", "`eos_token_id` 10**9 beside one that is there"),
    fault(lambda folder: change(folder, "generation_config.json", pad_token_id=-1), "pad_token_id = -1; expected",
          "generation_config.json: a negative token", "`pad_token_id` -1"),
    fault(lambda folder: change(folder, "generation_config.json", repetition_penalty=0),
          "repetition_penalty = 0; expected a number above 0", "generation_config.json: no penalty",
          "`repetition_penalty` 0"),
    fault(lambda folder: change(folder, "generation_config.json", stop_strings=["a"]), "stop_strings = ['a']; expected",
          "generation_config.json: stop strings", "`stop_strings` a"),
    fault(processor("video_processor", size={"height": 0, "width": 0}), "size.height = 0; expected a whole number",
          "frames of no pixels", "`size` 0 x 0 in processor_config.json"),
    fault(processor("video_processor", size={"height": 10**5, "width": 384}), "size.height = 100000; expected a whole",
          "frames of 100000 pixels", "`size` 100000 x 384"),
    fault(processor(None, num_image_tokens=10**12), "num_image_tokens = 1000000000000; expected a whole number",
          "an image of 10**12 tokens", "`num_image_tokens` 10**12"),
    fault(elsewhere("../x.safetensors"), "names '../x.safetensors': only .safetensors files beside it",
          "an index that leaves the folder", "weights in `../x.safetensors`"),
    fault(elsewhere("pytorch_model.bin"), "names 'pytorch_model.bin': only .safetensors files beside it",
          "an index of pickled weights", "weights in `pytorch_model.bin`"),
    fault(lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template", "no chat template",
          "chat_template.jinja removed"),
]  # fmt: skip


@pytest.mark.parametrize("make, told", FAULTS)
def test_what_cannot_be_loaded_is_told(
    make: Callable[[Path], object], told: str, folder: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder)
    with pytest.raises(CheckpointError, match="model"):
        load(str(folder))
    capsys.readouterr()
    assert main(["ask", str(SHIPPED), "What?", "--model", str(folder)]) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("tango: ")]
    assert told in line and not said.out and "Traceback" not in said.err
    assert not folder.with_name("it ran").exists()
    seen(line, KEPT)


@pytest.mark.fault("a head of another tower", "pooling_head.safetensors with tensors of another width")
def test_a_head_that_does_not_fit(folder: Path, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    head = {
        name: tensor[..., :4].contiguous() for name, tensor in load_file(WHOLE / "pooling_head.safetensors").items()
    }
    (folder / "pooling_head.safetensors").unlink()
    save_file(head, folder / "pooling_head.safetensors")
    assert main(["ask", str(SHIPPED), "What?", "--model", str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "this head belongs to another tower" in line
    seen(line, KEPT)


@pytest.mark.fault("weights that are NaN", "the projector's weights set to NaN, with a pruner attached")
def test_nan_weights(folder: Path, seen: Seen) -> None:
    weigh(folder, lambda all: {k: v * float("nan") if "projector" in k else v for k, v in all.items()})
    content = [{"type": "video", "video": str(SHIPPED)}, {"type": "text", "text": "What?"}]
    with (
        Chat(load(str(folder)), Tango(retention_ratio=0.1), max_frames=2).session() as chat,
        pytest.raises(ValueError, match=r"video 0 .*features must be finite") as error,
    ):
        chat.generate([{"role": "user", "content": content}], {"max_new_tokens": 1}, "a")
    seen(str(error.value), "the sample is recorded as failed; others go on")


@pytest.mark.parametrize("method", ["unpruned", "tango"])
@pytest.mark.fault("a language model that computes NaN", "`rms_norm_eps` NaN; its largest logit would be the first")
def test_a_language_model_that_computes_nan(method: str, folder: Path, seen: Seen) -> None:
    config("text_config", rms_norm_eps=float("nan"))(folder)
    content = [{"type": "video", "video": str(SHIPPED)}, {"type": "text", "text": "What?"}]
    message = [{"role": "user", "content": content}]
    with Chat(load(str(folder)), Tango() if method == "tango" else None, max_frames=2).session() as chat:
        with pytest.raises(ValueError, match="the language model computes NaN") as told:
            chat.generate(message, {"max_new_tokens": 2}, "x")
        with pytest.raises(ValueError, match="the language model computes NaN"):
            chat.loglikelihood(message, "red")
    seen(str(told.value), "the sample is recorded as failed; others go on")
