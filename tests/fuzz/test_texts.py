"""Settings of a method in YAML, and questions to a model: what is no text or no setting is named."""

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

from hypothesis import strategies as st

from tango.inference.chat import Chat
from tango.inference.checkpoints import load
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


ROOT = Path(__file__).parents[2]
SPELLED = st.sampled_from(
    ["<video>", "<image>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "user", "\n", "[/]", "\0"]
)
QUESTIONS = st.lists(st.one_of(SPELLED, st.text(max_size=5), st.characters(categories=["Cs"])), max_size=8)


def test_questions_of_any_text(fuzz: Callable[..., None]) -> None:
    """What the model is asked is what was asked, with the template's special tokens and no others."""
    checkpoint = load(str(ROOT / "checkpoints/tango-tiny"))
    tokenizer, video = checkpoint.processor.tokenizer, str(ROOT / "data/motionqa/videos/0.mp4")

    def prompt(chat: Chat, text: str) -> list[int]:
        content = [{"type": "video", "video": video}, {"type": "text", "text": text}]
        ids: list[int] = chat._prepare([{"role": "user", "content": content}])[0]["input_ids"][0].tolist()
        return ids

    with Chat(checkpoint, max_frames=1).session() as chat:
        around = prompt(chat, "")

        def check(pieces: list[str]) -> None:
            text = "".join(pieces)
            try:
                ids = prompt(chat, text)
            except ValueError as error:
                assert "is not UTF-8" in str(error) and any("\ud800" <= letter < "\ue000" for letter in text)  # noqa: PT017
                return
            special = set(tokenizer.all_special_ids) | {checkpoint.model.config.video_token_id}
            assert [i for i in ids if i in special] == [i for i in around if i in special]
            said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert normalize("NFC", text) in normalize("NFC", said)  # the tokenizer composes letters and accents

        fuzz(check, 60, pieces=QUESTIONS)
