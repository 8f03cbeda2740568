"""How `--help` looks: a title, then names and meanings in two columns, without boxes."""

from __future__ import annotations

from typing import Any

NAMES = 30  # columns for names; longer ones stand on a line of their own


def print_usage(console: Any, usage: Any) -> None:
    """Print the line that shows the order of the words."""
    # rich would end the process with 1 when `jaxgen --help | head -1` has read enough.
    console.on_broken_pipe = _broken_pipe
    text = getattr(usage, "plain", str(usage)).strip()
    if text:
        text = text if text.startswith("Usage:") else f"Usage: {text}"
        console.print(text, style="bold", highlight=False, markup=False)
        console.print()


def print_panel(console: Any, panel: Any) -> None:
    """Print one group of commands, arguments or options."""
    from rich.padding import Padding
    from rich.text import Text

    if not panel.entries:
        return
    console.print(Text(f"{panel.title}:", style="bold"))
    for entry in panel.entries:
        name = Text(f"  {' '.join(entry.display_labels_with_metavar)}", style="cyan")
        about = Text(_meaning(entry))
        if len(name) < NAMES and console.width >= NAMES + 30:
            lines = about.wrap(console, console.width - NAMES)
            name.pad_right(NAMES - len(name))
            console.print(name + (lines[0] if lines else Text("")))
            rest = lines[1:]
        else:
            console.print(name)
            rest = [about]
        for line in rest:
            console.print(
                Padding(line, (0, 0, 0, NAMES if len(name) <= NAMES else 6), expand=False)
            )
    console.print()


def _broken_pipe() -> None:
    raise BrokenPipeError


def _meaning(entry: Any) -> str:
    description = entry.description
    text = getattr(description, "plain", None) or str(description or "")
    if not hasattr(description, "plain") and hasattr(description, "primary_renderable"):
        text = getattr(description.primary_renderable, "plain", text)
    notes = []
    if entry.choices:
        notes.append(" | ".join(map(str, entry.choices)))
    if entry.default not in (None, "", "None", "False"):
        notes.append(f"default: {entry.default}")
    return text.strip() + (f" ({'; '.join(notes)})" if notes else "")
