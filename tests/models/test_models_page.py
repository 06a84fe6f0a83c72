"""The table of docs/models.md against the code: what it says of each family is what a model of it does or refuses."""

import contextlib
import importlib
import re
from pathlib import Path

import pytest
from families import FAMILIES

import tango.models
from tango.pruners import FastV, Uniform

ROOT = Path(__file__).parents[2]
WORDS = {"pooling_head": "pooling head", "global_query": "mean query", "received_attention": "received attention"}


def table() -> dict[str, dict[str, str]]:
    """The first table of the page: its cells by column, by the name of the family's file."""
    lines = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| family"))
    head, _, *rows = (
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[start : lines.index("", start)]
    )
    return {row[0].split("`")[1].removesuffix(".py"): dict(zip(head, row, strict=True)) for row in rows}


TABLE = table()


def attached(model, pruner) -> bool:
    """Whether a model takes a pruner; else it is refused with a sentence that names what was asked for."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(pruner(model))
        except (TypeError, ValueError) as error:
            if not re.search("tower_reuse|linear", str(error)):
                raise
            return False
        return True


def test_every_family_has_a_row():
    modules = {path.rpartition(".")[2] for path in tango.models.FAMILIES.values()}
    assert {*TABLE} == modules
    for name, path in tango.models.FAMILIES.items():
        row = TABLE[path.rpartition(".")[2]]
        assert f"`{name}`" in row["class in transformers"]
    listed = re.findall(
        r"`(\w+ForConditionalGeneration)`", " ".join(row["class in transformers"] for row in TABLE.values())
    )
    assert sorted(listed) == sorted(tango.models.FAMILIES)


@pytest.mark.parametrize("which", sorted(FAMILIES))  # not "name": conftest.py takes out later families by that
def test_a_row_is_what_the_family_does(which):
    family, model = FAMILIES[which], FAMILIES[which].model()
    kind = tango.models.family_of(model)
    row = TABLE[kind.__module__.rpartition(".")[2]]
    saliencies = row["saliency: default, others"]
    if saliencies == "the same":
        saliencies = TABLE["llava_onevision"]["saliency: default, others"]
    places = [saliencies.find(WORDS[saliency]) for saliency in kind.saliencies]
    assert -1 not in places and places == sorted(places) and len(places) == len(re.split("[;,]", saliencies))
    assert row["positions"].startswith("kept (M-RoPE" if family.mrope else "numbered without gaps")
    assert row["batch"] == "yes"  # test_attach.py has prompts of one, two and three rows for every family
    assert (
        row["inside the language model"]
        == {True: "yes", False: "refused"}[attached(model, FastV(retention_ratio=0.9, pruned_layer=1))]
    )
    reuse = [kind for kind in ("pixels", "stc") if attached(model, Uniform(tower_reuse=kind))]
    assert row["`tower_reuse`"] == (", ".join(reuse) or "refused")


def test_vllm_is_what_the_plugin_registers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "vllm-plugin"))
    served = {*importlib.import_module("tango_vllm").FAMILIES}
    for row in TABLE.values():
        classes = re.findall(r"`(\w+ForConditionalGeneration)`", row["class in transformers"])
        own = [name for name in classes if name in served]
        mixtures = [name for name in classes if name not in served]
        said = "no" if not own else "dense alone" if mixtures else "yes"
        assert row["[vLLM](serving.md)"] == said and all("Moe" in name for name in mixtures if own)
