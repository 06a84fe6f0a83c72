"""Find SigLIP's pooling head and read it alone: LLaVA checkpoints leave it out, and it is Tango's saliency.

Only safetensors are read, and of them only the tensors that are needed. Places, first one wins: the path or hub id the
user gave; the tower itself, if it has its head; beside the checkpoint (`pooling_head.safetensors`, or the checkpoint's
own files); the default hub checkpoint, for a tower of its dimensions.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from tango.models.tensors import INDEX, WEIGHTS, files_in, files_of, weight_map
from tango.models.tower import PoolingHead, weight

FILE = "pooling_head.safetensors"
DEFAULT_ID = "google/siglip-so400m-patch14-384"
DEFAULT_DIMENSIONS = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "patch_size": 14, "image_size": 384,
}  # fmt: skip

PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # others are quantized, float8 too

# Tensors of the pooling head by the names they have below the vision model.
ATTENTION_TENSORS = (
    "post_layernorm.weight", "post_layernorm.bias", "head.probe",
    "head.attention.in_proj_weight", "head.attention.in_proj_bias",
)  # fmt: skip
OUTPUT_TENSORS = (
    "head.attention.out_proj.weight", "head.attention.out_proj.bias", "head.layernorm.weight", "head.layernorm.bias",
    "head.mlp.fc1.weight", "head.mlp.fc1.bias", "head.mlp.fc2.weight", "head.mlp.fc2.bias",
)  # fmt: skip


def load_pooling_head(tower: Any, checkpoint: str | None, given: str | None, with_output: bool) -> PoolingHead:
    """The head that fits a SigLIP tower.

    checkpoint: where the model came from, a folder or hub id (`model.config._name_or_path`).
    given: a .safetensors file, a folder or a hub id to read it from, and only from there.
    with_output: read what pooled() needs, too.

    Raises FileNotFoundError, saying what to download or pass, if the head is nowhere; ValueError for tensors that are
    missing or of another shape than the tower's, and for files that are not safetensors.
    """
    names = ATTENTION_TENSORS + (OUTPUT_TENSORS if with_output else ())
    if given is None and getattr(tower, "head", None) is not None:
        return folded(own_head(tower, names), tower.config)

    tried: list[str] = []
    files = find_given(given, tried) if given is not None else find_beside(checkpoint, tower.config, tried)
    if files is None:
        raise FileNotFoundError(missing(tower.config, tried))
    return folded(read(files, names, tensor_shapes(tower.config)), tower.config)


def folded(tensors: Mapping[str, Tensor], config: Any) -> PoolingHead:
    """The head of tensors by their names below the vision model; those of the output only where pooled() is wanted.

    One query a frame, so no key is needed: q . (W x + b) = (W^T q) . x + a constant that softmax cancels.
    """
    # Copies: products of tensors that lie unaligned in a mapped file round differently.
    plain = {name: tensor.detach().dequantize() for name, tensor in tensors.items()}  # torchao's and quanto's too
    own = {name: tensor.to(torch.float32, copy=True) for name, tensor in plain.items()}
    query, key, _ = own["head.attention.in_proj_weight"].chunk(3)
    bias = own["head.attention.in_proj_bias"].chunk(3)[0]
    with torch.autocast(query.device.type, enabled=False):
        probe = (query @ own["head.probe"].flatten() + bias).view(1, config.num_attention_heads, -1)
        probe, key = probe * probe.shape[-1] ** -0.5, key.view(*probe.shape[1:], -1)
        own["folded"] = torch.einsum("fho,hod->fhd", probe, key)[0]
    return PoolingHead(own, config)


def pooled(head: PoolingHead, normed: Tensor, weights: Tensor) -> Tensor:
    """The head's output (F, D) for what its attention() returned."""
    t, config = head.tensors, head.config
    frames, _, width = normed.shape
    value, bias = t["head.attention.in_proj_weight"].chunk(3)[2], t["head.attention.in_proj_bias"].chunk(3)[2]
    mixed = torch.einsum("fhd,hod->fho", weights @ normed, value.view(config.num_attention_heads, -1, width))
    mixed = mixed.reshape(frames, width)
    out = F.linear(mixed + bias, t["head.attention.out_proj.weight"], t["head.attention.out_proj.bias"])
    inner = F.layer_norm(out, (width,), t["head.layernorm.weight"], t["head.layernorm.bias"], config.layer_norm_eps)
    inner = ACT2FN[config.hidden_act](F.linear(inner, t["head.mlp.fc1.weight"], t["head.mlp.fc1.bias"]))
    return out + F.linear(inner, t["head.mlp.fc2.weight"], t["head.mlp.fc2.bias"])


def own_head(tower: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The tower's own tensors of these names.

    Raises ValueError where quantization or an adapter has changed what a weight is.
    """
    plain = dict(tower.named_parameters())
    if changed := [name for name in names if name not in plain or plain[name].dtype not in PLAIN]:
        raise ValueError(
            f"the tower's own pooling head is quantized or has an adapter ({changed[0]}), so its weights are not "
            "what it computes with: pass saliency_weights, or load the head as it was"
        )
    return {name: weight(tower, name) for name in names}


def find_given(given: str, tried: list[str]) -> dict[str, Path] | None:
    """Tensor name -> file for what the user named in saliency_weights."""
    path = Path(os.path.expanduser(given))
    if path.is_file():
        return files_of(path)
    if path.is_dir():
        tried.append(f"the folder {path}")
        return in_folder(path)
    return on_hub(given, tried)


def find_beside(checkpoint: str | None, config: Any, tried: list[str]) -> dict[str, Path] | None:
    """Tensor name -> file, from beside the checkpoint, else from the default hub checkpoint."""
    files = None
    if checkpoint and Path(checkpoint).is_dir():
        tried.append(f"the checkpoint's folder {checkpoint}")
        files = in_folder(Path(checkpoint))
    elif checkpoint:
        path = download(checkpoint, FILE, tried)
        files = files_of(path) if path else None
    if files is None and fits_default(config):
        files = on_hub(DEFAULT_ID, tried)
    return files


def fits_default(config: Any) -> bool:
    """Whether a tower has the dimensions of the default checkpoint's."""
    return all(getattr(config, name, None) == value for name, value in DEFAULT_DIMENSIONS.items())


def in_folder(folder: Path) -> dict[str, Path] | None:
    """The head's tensors in a folder: a file of its own, or the files of a checkpoint; None if they are in neither."""
    if (folder / FILE).is_file():
        return files_of(folder / FILE)
    files = files_in(folder, "*.safetensors")
    return files if probe_of(files) else None


def on_hub(repository: str, tried: list[str]) -> dict[str, Path] | None:
    """The same for a hub id. Of a sharded checkpoint only the index and the shards that hold the head are fetched."""
    if path := download(repository, FILE, tried):
        return files_of(path)
    if index := download(repository, INDEX, tried):
        shards = {name: file for name, file in weight_map(index).items() if is_head(name)}
        paths = {file: download(repository, file, tried) for file in sorted(set(shards.values()))}
        files = {name: path for name, file in shards.items() if (path := paths[file])}
        return files if probe_of(files) else None
    path = download(repository, WEIGHTS, tried)
    return files_of(path) if path else None


def download(repository: str, file: str, tried: list[str]) -> Path | None:
    """A file of a hub repository, or None; `tried` gets the reason."""
    try:
        return Path(hf_hub_download(repository, file))
    except HFValidationError:
        reason = "it is neither a file nor a folder here, nor a hub id"
    except (OSError, EntryNotFoundError) as error:  # no such file or repository, no network, no rights
        reason = type(error).__name__
    tried.append(f"{file} of {repository} ({reason})")
    return None


def is_head(name: str) -> bool:
    """Whether this is a tensor of the pooling head, whatever it is prefixed with."""
    return any(name == wanted or name.endswith("." + wanted) for wanted in ATTENTION_TENSORS + OUTPUT_TENSORS)


def probe_of(files: dict[str, Path]) -> str | None:
    """The full name of the probe, whatever it is prefixed with (`vision_model.`, `model.vision_tower.`, ..)."""
    return next((name for name in sorted(files) if name == "head.probe" or name.endswith(".head.probe")), None)


def read(files: dict[str, Path], names: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the named tensors, and nothing else, checked against the tower's shapes."""
    where = ", ".join(sorted({str(path) for path in files.values()}))
    probe = probe_of(files)
    if probe is None:
        raise ValueError(f"no SigLIP pooling head in {where}: it has no tensor that ends in 'head.probe'")
    prefix = probe.removesuffix("head.probe")
    absent = [prefix + name for name in names if prefix + name not in files]
    if absent:
        raise ValueError(f"the pooling head in {where} is not whole; missing: {', '.join(absent)}")
    tensors = {}
    for name in names:
        path = files[prefix + name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(prefix + name)
        except SafetensorError as error:
            raise ValueError(f"cannot read {prefix + name} from {path}: {error}") from error
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{prefix + name} in {path} has shape {tuple(tensor.shape)}, and the model's vision tower needs "
                f"{shapes[name]}: this head belongs to another tower"
            )
        tensors[name] = tensor
    return tensors


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the head that fits a tower with this SiglipVisionConfig."""
    with torch.device("meta"):
        head = SiglipMultiheadAttentionPoolingHead(config)
    shapes = {f"head.{name}": tuple(parameter.shape) for name, parameter in head.named_parameters()}
    return shapes | dict.fromkeys(("post_layernorm.weight", "post_layernorm.bias"), (config.hidden_size,))


def missing(config: Any, tried: Sequence[str]) -> str:
    """What to tell someone whose head is nowhere."""
    remedy = (
        f"Download it once where there is a network (`hf download {DEFAULT_ID} {WEIGHTS}`), or pass "
        if fits_default(config)
        else f"No public checkpoint is known for this tower (width {config.hidden_size}). Pass "
    )
    return (
        "saliency 'pooling_head' needs SigLIP's post_layernorm and attention pooling head, which LLaVA checkpoints "
        f"leave out. Not found in: {'; '.join(tried) or 'nowhere to look, the model was not loaded from a folder'}. "
        f"{remedy}saliency_weights=<.safetensors file, folder or hub id>, put {FILE} beside the checkpoint, or choose "
        "saliency='global_query', which needs no extra weights."
    )
