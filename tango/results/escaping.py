"""Text of people, files and models as text: in each format, what would act as markup there is written so that it shows.

Names of models, folders, kinds of questions and machines may hold anything a file system or a data set lets through.
"""

import re
from collections.abc import Iterable

LONGEST = 60  # letters of a label in a plot
LATEX = {c: f"\\{c}" for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}


def plain(text: str) -> str:
    """On one line, with what is not printable as its escape: ends of lines, commands to a terminal, half characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def csv_text(text: str) -> str:
    """A field of CSV, quoted where needed, that no spreadsheet takes for a formula nor pandas for a comment."""
    text = re.sub(r"^(?=[=+\-@])", "'", plain(text))
    return '"' + text.replace('"', '""') + '"' if re.search(r'[,"#]', text) else text


def markdown_text(text: str) -> str:
    """For Markdown, in a line or a table."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is no emphasis
    return re.sub(r"\](?=[(\[])", r"\\]", text)  # links; brackets around an interval stay as they are


def markdown_items(texts: Iterable[str]) -> str:
    """A list in Markdown."""
    items = (re.sub(r"^(?=[\[#+=-])|(?<=^\d)(?=[.)])", r"\\", markdown_text(text)) for text in texts)
    return "\n".join(f"- {item}" for item in items)


def latex_text(text: str) -> str:
    """For LaTeX; at the front of a row a bracket or star would belong to the line break before it."""
    return re.sub(r"^(?=[\[*])", "{}", "".join(LATEX.get(c, c) for c in plain(text)))


def plot_text(text: str) -> str:
    """For matplotlib, which takes dollars for formulas and hides labels with an underscore at the front."""
    text = plain(text)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}.."
    return re.sub("^_", " _", text).replace("$", r"\$")
