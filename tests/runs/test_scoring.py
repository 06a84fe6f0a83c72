"""Which letter a reply chooses."""

import pytest

from tango.runs.scoring import parse_choice

COLOURS = ["red", "blue", "a green one", "yellow"]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), ("b", "B"), (" B ", "B"), ("(C)", "C"), ("(C", "C"), ("D.", "D"), ("A) red", "A"),
        ("B: blue", "B"),
        ("B blue", "B"), ("A red", "A"), ("**B**", "B"), ("B\nbecause it moves", "B"), ("D, I think", "D"),
        ("The answer is (B).", "B"), ("Answer: C", "C"), ("option D", "D"), ("The best answer is B, not the rest", "B"),
        ("It must be C", "C"), ("red", "A"), ("It is blue.", "B"), ("A green one", "C"), ("a green one.", "C"),
        ("", None), ("I cannot tell", None), ("A or B", None), ("A blue one", "B"), ("red or blue", None), ("E", None),
        ("A dog", None), ("Always", None), ("reddish", None), ("B or C", None), ("I think B is right", "B"),
        ("A is right", "A"), ("I think A is right", "A"), ("I see a dog", None),
    ],
)  # fmt: skip
def test_replies(reply: str, letter: str | None) -> None:
    assert parse_choice(reply, COLOURS) == letter


def test_letters_go_as_far_as_options_do() -> None:
    assert parse_choice("C", ["yes", "no"]) is None
    assert parse_choice("E", ["1", "2", "3", "4", "5"]) == "E"
    with pytest.raises(ValueError, match="1 options"):
        parse_choice("A", ["only"])


def test_the_letters_of_options_that_are_letters() -> None:
    """A reply is read as an option's letter before it is read as an option's text."""
    assert parse_choice("B", ["K", "H", "B", "T"]) == "B"
    assert parse_choice("K", ["K", "H", "S", "T"]) == "A"
