"""How `--help` looks: a title, then names and meanings in two columns, without boxes."""

from __future__ import annotations

import re
from typing import Any

from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, HelpEntry, TableSpec

NAMES = 28  # columns for names; longer ones are wrapped


def _names(entry: HelpEntry) -> str:
    return "  " + " ".join(entry.display_labels_with_metavar)


class HelpFormatter(DefaultFormatter):
    """The help formatter of cyclopts, with tables instead of panels."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print one group of commands, arguments or options."""
        if not panel.entries:
            return
        columns = (
            ColumnSpec(renderer=_names, width=NAMES, style="cyan"),
            ColumnSpec(renderer=DescriptionRenderer()),
        )
        console.print(f"{panel.title}:", style="bold")
        table = TableSpec(padding=(0, 0, 0, 2), collapse_padding=True)
        console.print(table.build(columns, panel.entries))
        console.print()

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the line that shows the order of the words."""
        # rich would end the process with 1 when `jaxgen --help | head -1` has read enough.
        console.on_broken_pipe = _broken_pipe
        super().render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what a verb does, its paragraphs as wide as the terminal."""
        whole = getattr(description, "primary_renderable", description)
        if isinstance(getattr(whole, "plain", None), str):
            whole.plain = LINE_END.sub(" ", whole.plain)
        super().render_description(console, options, description)


# The end of a line within a paragraph; indented lines, commands and lists, stay lines.
LINE_END = re.compile(r"(?<=[^\n])\n(?=[^\s])")


def _broken_pipe() -> None:
    raise BrokenPipeError
