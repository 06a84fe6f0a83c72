"""YAML settings and variables of methods."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from tango.runs.settings import MethodSettings, SettingsError, from_environment, methods

WORDS = st.sampled_from(
    ["retention_ratio", "tango", "fastv", ":", "- ", "\n", "  ", "{", "}", "[", "]", "&a", "*a", "<<",
     "!!python/object:os.system", "0.1", ".nan", ".inf", "1e999", "9" * 400, "null", "true", "2020-1-1", "|", ">", "#",
     "%", "@", "\u2028", "\x85", "\t", "'", '"', "\0", "\ufeff"]
)  # fmt: skip


def test_settings_of_any_words(fuzz: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"

    def check(words: list[str], method: str) -> None:
        file.write_text("".join(words), encoding="utf-8")
        try:
            chosen = from_environment({"WRAPPER": method, "TANGO_CONFIG": str(file)})
            assert isinstance(chosen, MethodSettings)
        except SettingsError as error:
            assert "settings.yaml" in str(error)  # noqa: PT017 (either is right)

    fuzz(check, 200, words=st.lists(WORDS, max_size=20), method=st.sampled_from(methods()))
