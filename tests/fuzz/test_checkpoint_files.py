"""Checkpoints with a field of a JSON file changed, or another chat template: loaded, or refused by their name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tango.inference.checkpoints import Checkpoint, CheckpointError, load

WHOLE = Path(__file__).parents[2] / "checkpoints/tango-tiny"
FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")
ODD = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 1, 3, 7, 10**4, 2**31, 10**30, 0.5, -0.0, 1e300]),
    st.sampled_from(["", "nope", "0", "../x", "float8_e4m3fn", "BertModel", "\u2028", "a" * 5000]),
    st.sampled_from([[], [5], ["a"], [[1]], {}, {"a": 1}, {"model_type": "bert"}]),
)  # fmt: skip
PIECES = st.sampled_from(
    ["{% for m in messages %}", "{% endfor %}", "{% if m %}", "{% endif %}", "{{ m['content'][0]['type'] }}", "<video>",
     "{{ m.content[1].text }}", "{{ 1 / 0 }}", "{% set x = messages %}", "{{ x }}", "{{ raise_exception('x') }}", "{#",
     "{% for a in range(99999) %}", "{{ 'a' * 10**6 }}", "{{", "}}", "{% macro f() %}", "{% endmacro %}", "{{ f() }}"]
)  # fmt: skip


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to each field of a mapping, and of the mappings in it."""
    if not isinstance(content, dict):
        return [path]
    return ([path] if path else []) + [way for key, value in content.items() for way in leaves(value, (*path, key))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (made := tmp_path / "model").mkdir()
    for file in WHOLE.iterdir():
        (made / file.name).symlink_to(file)
    return made


def tried(folder: Path, name: str, text: str) -> None:
    """The checkpoint with a file changed is loaded, or the error names it."""
    (folder / name).unlink()
    (folder / name).write_text(text, encoding="utf-8")
    refused, loaded = None, None
    try:
        loaded = load(str(folder))
    except CheckpointError as error:
        refused = str(error)
    assert isinstance(loaded, Checkpoint) or "model" in refused


def test_changed_fields(fuzz: Callable[..., None], folder: Path) -> None:
    contents = {name: json.loads((WHOLE / name).read_text(encoding="utf-8")) for name in FILES}
    every = [(name, way) for name, content in contents.items() for way in leaves(content)]

    def check(place: tuple[str, tuple[str, ...]], value: object) -> None:
        name, (*path, last) = place
        changed = json.loads((WHOLE / name).read_text(encoding="utf-8"))
        part = changed
        for key in path:
            part = part[key]
        part[last] = value
        try:
            tried(folder, name, json.dumps(changed))
        finally:
            (folder / name).write_text(json.dumps(contents[name]), encoding="utf-8")

    fuzz(check, examples=20, place=st.sampled_from(every), value=ODD)


def test_templates_of_any_pieces(fuzz: Callable[..., None], folder: Path) -> None:
    def check(pieces: list[str]) -> None:
        tried(folder, "chat_template.jinja", "".join(pieces))

    fuzz(check, examples=15, pieces=st.lists(PIECES, min_size=1, max_size=8))
