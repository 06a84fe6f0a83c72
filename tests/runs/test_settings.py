"""WRAPPER, TANGO_CONFIG and TANGO_ARGS: what they select, who wins, and what is refused before a model is loaded."""

from pathlib import Path

import pytest

from tango.pruners import REGISTRY
from tango.runs.settings import SettingsError, from_environment, methods

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "settings.yaml"
    file.write_text("retention_ratio: 0.2\ntango: {context_ratio: 0.5, sink_tokens: [1, 2]}\nrandom: {seed: 7}\n")
    return str(file)


@pytest.mark.parametrize("environ", [{}, {"WRAPPER": "vanilla"}, {"WRAPPER": " "}])
def test_without_a_method_the_model_stays_as_it_is(environ: dict[str, str]) -> None:
    chosen = from_environment(environ)
    assert chosen.pruner is None
    assert chosen.describe() == {"method": "vanilla", "settings": {}, "sources": chosen.sources}


def test_every_method_of_the_registry_can_be_chosen() -> None:
    for name, method in REGISTRY.items():
        chosen = from_environment({"WRAPPER": name})
        assert type(chosen.pruner) is method
        assert chosen.describe()["settings"] == method().settings()
    assert set(methods()) == {"vanilla", *REGISTRY}


def test_arguments_win_over_the_file_and_the_file_over_defaults(config: str) -> None:
    settings = from_environment(
        {"WRAPPER": "tango", "TANGO_CONFIG": config, "TANGO_ARGS": "context_ratio=0.3, num_neighbors=5"}
    ).describe()["settings"]
    assert settings["context_ratio"] == 0.3
    assert settings["num_neighbors"] == 5
    assert settings["retention_ratio"] == 0.2
    assert settings["sink_tokens"] == [1, 2]
    assert settings["expansion"] == 1.5


def test_a_file_may_hold_several_methods(config: str) -> None:
    settings = from_environment({"WRAPPER": "random", "TANGO_CONFIG": config}).describe()["settings"]
    assert (settings["seed"], settings["retention_ratio"]) == (7, 0.2)


def test_values_have_the_types_of_their_fields() -> None:
    given = (
        "retention_ratio=1,similarity_threshold=none,sink_tokens=28;27;41,segmentation=fastvid,saliency=global_query"
    )
    settings = from_environment({"WRAPPER": "tango", "TANGO_ARGS": given}).describe()["settings"]
    assert isinstance(settings["retention_ratio"], float)
    assert settings["similarity_threshold"] is None
    assert settings["sink_tokens"] == [28, 27, 41]
    assert (settings["segmentation"], settings["saliency"]) == ("fastvid", "global_query")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WRAPPER": "tengo"}, ["'tengo'", "vanilla", "random", "tango", "topk", "uniform"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "ratio=0.1"}, ["'ratio'", "retention_ratio", "anchor_weight"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio"}, ["field=value"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "expansion=2,expansion=3"}, ["twice"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=a tenth"}, ["'a tenth'", "a number"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=10%"}, ["'10%'", "a number", "10 % is 0.1"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "num_neighbors=2.5"}, ["'2.5'", "an integer"]),
        ({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=1.5"}, ["retention_ratio", "1.5", "(0, 1]"]),
        ({"WRAPPER": "tango", "TANGO_CONFIG": "configs/none.yaml"}, ["no such file"]),
        ({"WRAPPER": "tango", "TANGO_CONFIG": "~nobody/none.yaml"}, ["no such file"]),
        ({"TANGO_ARGS": "retention_ratio=0.1"}, ["WRAPPER is not", "tango"]),
    ],
)
def test_mistakes_are_named_with_what_exists(environ: dict[str, str], said: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        from_environment(environ)
    assert all(word in str(error.value) for word in said), error.value


def test_a_missing_file_lists_its_neighbours() -> None:
    with pytest.raises(SettingsError, match=r"llava_onevision\.yaml, llava_video\.yaml, .*tango_tiny\.yaml"):
        from_environment({"WRAPPER": "tango", "TANGO_CONFIG": str(REPOSITORY / "configs/none.yaml")})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "must be a mapping"),
        ("a: b: c", "is not YAML"),
        ("retention: 0.1", "unknown key 'retention'.*retention_ratio"),
        ("tango: {seed: 1}", "'tango' has no field 'seed'"),
        ("tango: 0.1", "names a method"),
        ("retention_ratio: a tenth", "expected a number"),
        ("retention_ratio: true", "expected a number"),
        ("tango: {sink_tokens: 1}", r"sink_tokens = 1: expected a tuple .*1;2;3\) or none$"),
        ("tango: {sink_tokens: [3, 1.5]}", r"tango\.sink_tokens\[1\] = 1\.5: expected an integer$"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=said):
        from_environment({"WRAPPER": "tango", "TANGO_CONFIG": str(file)})


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_files_fit_every_method(file: Path) -> None:
    for name in methods():
        from_environment({"WRAPPER": name, "TANGO_CONFIG": str(file)})
