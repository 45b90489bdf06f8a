"""Print to a terminal: what names, data and errors hold can never steer it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from raysweep.reports.wording import printable


class SafeConsole(Console):
    """A console of Rich that prints control characters of a text as escapes; its own styles stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Rich's own codes are segments with `control`, or styles: the text of a segment is what was given to print.
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
