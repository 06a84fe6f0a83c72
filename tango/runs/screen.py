"""What is printed for people: text of questions, answers and names of files never commands the terminal."""

import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters but for the ends of lines and tabs, and those that turn the direction of what comes after them.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The same with what a terminal would obey as its escape."""
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_text(content: Any, **options: Any) -> str:
    """JSON with JSON's own escapes of these, and of half characters in names of files: equal when it is read."""
    text = json.dumps(content, ensure_ascii=False, **options)
    return COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode(errors="backslashreplace").decode()


def note(line: str) -> None:
    """A line for people on stderr, at once."""
    print(visible(" ".join(line.split())), file=sys.stderr, flush=True)


class Screen(Console):
    """A console on which text is text: no markup, no names of pictures, nothing for the terminal to obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As Console does, for all text that is no Text already, also in tables."""
        return super().render_str(visible(text), **options)

    def say(self, text: str) -> None:
        """A line as it is, however long: terminals may break it."""
        self.print(text, soft_wrap=True, highlight=False)
