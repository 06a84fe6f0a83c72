"""Scores multiple choice by rule: which letter does a reply choose? No judge, no network."""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
ARTICLES = "AI"  # letters that are also words: "A dog", "I think"


def parse_choice(reply: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a reply chooses, or None if it cannot be told.

    In this order: a letter alone or in front ("B", "(B)", "B. red", "B red"); after "answer", "option" or "choice"; the
    only letter that stands by itself; the text of exactly one option. An article is no letter: "A red square" chooses A
    only if that is what option A says.

    Args:
        options: the options' texts, the first is A.

    Raises:
        ValueError: fewer than two options, or more than there are letters.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options; from 2 to {len(LETTERS)} can be told apart by letter")
    known = LETTERS[: len(options)]
    text = reply.strip().strip("*_`\"'").strip()
    if front := re.match(rf"\(?([{known}])(?:\s*[).:,;\]*-]|\s*$|\s*\n)", text):
        return front[1]
    if front := re.match(rf"([{known}{known.lower()}])\)?$", text):
        return front[1].upper()
    if front := re.match(rf"([{known}])\s+(?!or\b|and\b)(.*)", text, re.DOTALL):
        own = _plain(options[known.index(front[1])])
        if front[1] not in ARTICLES or _plain(front[2]) == own:
            return front[1]
    letter = rf"([{known}])(?![\w'])(?!(?<=[{ARTICLES}])\s+(?!(?:or|and|is)\b)[a-z])"
    said = re.findall(rf"(?i:answer|option|choice)(?:\s+(?i:is))?\s*:?\s*\(?{letter}", text)
    alone = re.findall(rf"(?<![\w']){letter}", text)
    for found in (said, alone):
        if len(set(found)) == 1:
            return str(found[0])
    if alone or said:
        return None
    plain = _plain(text)
    exact = [letter for letter, option in zip(known, options, strict=True) if _plain(option) == plain]
    named = [
        letter
        for letter, option in zip(known, options, strict=True)
        if re.search(rf"(?<!\w){re.escape(_plain(option))}(?!\w)", plain)
    ]
    for found in (exact, named):
        if len(found) == 1:
            return found[0]
    return None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" .,:;!*\"'").lower()
