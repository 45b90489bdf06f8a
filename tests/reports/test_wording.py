"""What is printed never steers the terminal: control characters are escapes, all other text is as it was."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.table import Table
from rich.text import Text

from raysweep.reports.console import SafeConsole
from raysweep.reports.wording import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb\x08c\x7f\x00", "a\\rb\\x08c\\x7f\\x00"),
        ("\x9b31m", "\\x9b31m"),  # one character that means what ESC [ does
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),  # writes from right to left: `txt.exe` for `exe.txt`
        ("\ud800", "\\ud800"),  # half a character, as in a file name that is no UTF-8
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["138.9◇ → 131.6 · é 你好 مرحبا", "two\nlines\tand a tab", "👩\u200d👧", "e\u0301", "\u00a0"]
)
def test_all_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_console_keeps_its_own_styles_and_escapes_what_it_prints() -> None:
    output = StringIO()
    console = SafeConsole(file=output, force_terminal=True, width=60, color_system="standard", _environ={})
    console.print(Text("bold \x1b[31m", style="bold"))
    table = Table()
    table.add_column("a\x1b]8;;x\x07")
    table.add_row("\x1b[2J")
    console.print(table)
    with console.status("still \x1b[H"):
        pass
    text = output.getvalue()
    # A cell is as wide as what it was given; the longer escape is cut there.
    assert "\\x1b[31m" in text and "\\x1b[2" in text and "\x1b[1m" in text
    assert "\x1b[31m" not in text and "\x1b[2J" not in text and "\x1b]8" not in text and "\x1b[H" not in text
