"""The picture of a run: loss.png from metrics.jsonl."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.errors import BusyError
from jaxgen.train.log import decode

ABSENT = 'no loss.png: pip install "jaxgen[plot]" to have it'
NATS = "loss in nats per token"
WIDTH, HEIGHT, DPI = 10.0, 6.2, 150
INK, GREY, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
TRAIN, VALID, SKIPPED = "#2f6fb0", "#d9722e", "#c81e3a"
APART = 0.062  # of the height: two labels nearer than this would overlap
SMOOTHING = 40  # the running mean spans a fortieth of the run


def draw_loss(
    metrics_file: Path, png: Path, *, title: str, about: str = NATS, of: str = "loss"
) -> str | None:
    """Draw losses, learning rate and skipped steps of a run; return why not, if it could not be.

    about: what the losses are, below the title. of: the metric to draw in their place: reward.

    The answer is a sentence for the reader, never an exception: a missing picture is no failure
    of a run. The file appears whole or not at all.
    """
    if find_spec("matplotlib") is None:
        return ABSENT
    try:
        records = [decode(line) for line in metrics_file.read_bytes().splitlines(keepends=True)]
    except OSError as error:
        return f"no loss.png: {metrics_file} can't be read ({error.strerror})"
    train = _columns(records, "train", ("loss", "learning_rate", "streak"), of)
    if not len(train["step"]):
        return f"no loss.png: {metrics_file} has no training {of} that is a number"
    valid = _columns(records, "valid", ("loss",), of)
    picture = io.BytesIO()
    _figure(train, valid, _skips(records), title, about, of).savefig(picture, dpi=DPI)
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        files.write(png, picture.getvalue())
    except (OSError, BusyError) as error:
        return f"no loss.png: {error}"
    return None


def running_mean(values: np.ndarray, span: int) -> np.ndarray:
    """Return the centred mean over `span` values; near both ends the window shrinks to fit."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    half = np.minimum(span // 2, np.minimum(index, index[::-1]))
    half[-1] = half[max(len(half) - 1 - span // 2, 0)]  # the last value must not be mere noise
    start = np.maximum(index - half, 0)
    stop = np.minimum(index + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _columns(
    records: list, kind: str, names: tuple[str, ...], of: str = "loss"
) -> dict[str, np.ndarray]:
    rows = [r for r in records if r and r.get("kind") == kind and r.get(of) is not None]
    rows = [{**r, "loss": r[of]} for r in rows]
    rows = [r for r in rows if not r.get("streak")]  # a refused step's loss taught nothing
    table = {name: [r.get(name) for r in rows] for name in ("step", *names)}
    return {name: np.array(column, dtype=np.float64) for name, column in table.items()}


def _skips(records: list) -> np.ndarray:
    return np.array([r["step"] for r in records if r and r.get("streak")], dtype=np.float64)


def _figure(
    train: dict, valid: dict, skips: np.ndarray, title: str, about: str = NATS, of: str = "loss"
) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    figure.subplots_adjust(left=0.07, right=0.815, top=0.86, bottom=0.085, hspace=0.16)
    head = {"fontsize": 16, "fontweight": "bold", "color": INK}
    figure.text(0.02, 0.945, title, parse_math=False, **head)
    figure.text(0.02, 0.9, about, fontsize=11.5, color=GREY)
    last = max(train["step"][-1], valid["step"][-1] if len(valid["step"]) else 0)
    for axes in (upper, lower):
        _bare(axes)
        axes.set_xlim(0, max(last, 1))
    _losses(upper, train, valid, of)
    if len(skips):
        low = upper.get_ylim()[0]
        upper.plot(skips, np.full(len(skips), low), "|", color=SKIPPED, ms=16, mew=1.6)
        words = f"{len(skips)} step{'s' if len(skips) > 1 else ''} skipped"
        _label(upper, low, words, SKIPPED, weight="normal")
    lower.plot(train["step"], train["learning_rate"], color=GREY, lw=1.6, clip_on=False)
    lower.fill_between(train["step"], 0, train["learning_rate"], color=FAINT, lw=0)
    peak = np.nanmax(train["learning_rate"], initial=0.0)
    lower.set_ylim(0, peak * 1.1 or 1)
    lower.set_yticks([])
    _label(lower, 0.5 * (peak * 1.1 or 1), f"learning rate\npeak {peak:.3g}", GREY, weight="normal")
    lower.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    lower.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.annotate(
        "step",
        (1.0, 0.0),
        xycoords="axes fraction",
        xytext=(30, -6),
        textcoords="offset points",
        va="top",
        fontsize=11,
        color=GREY,
    )
    return figure


def _losses(axes: Any, train: dict, valid: dict, of: str) -> None:
    smooth = running_mean(train["loss"], max(len(train["loss"]) // SMOOTHING, 1))
    axes.plot(train["step"], train["loss"], color=TRAIN, lw=0.8, alpha=0.3)
    axes.plot(train["step"], smooth, color=TRAIN, lw=2.2, solid_capstyle="round", clip_on=False)
    axes.plot(train["step"][-1], smooth[-1], "o", color=TRAIN, ms=4, clip_on=False)
    losses = np.concatenate([smooth, valid["loss"]])
    # A spike of one step may leave the picture; a run of a few steps must not look like a cliff.
    margin = max(0.06 * np.ptp(losses), 0.05)
    axes.set_ylim(losses.min() - margin, losses.max() + margin)
    labels = [(smooth[-1], f"training {smooth[-1]:.3f}", TRAIN)]
    if len(valid["loss"]):
        axes.plot(valid["step"], valid["loss"], color=VALID, lw=1.2, alpha=0.7)
        dots = {"color": VALID, "ms": 6, "mec": "white", "mew": 1.2, "zorder": 3}
        axes.plot(valid["step"], valid["loss"], "o", clip_on=False, **dots)
        best = int((-valid["loss"] if of == "reward" else valid["loss"]).argmin())
        words = f"validation {valid['loss'][-1]:.3f}"
        if best != len(valid["loss"]) - 1:
            axes.annotate(
                f"best {valid['loss'][best]:.3f}",
                (valid["step"][best], valid["loss"][best]),
                xytext=(0, 10),
                textcoords="offset points",
                ha="center",
                fontsize=11,
                color=VALID,
            )
        labels.append((valid["loss"][-1], words, VALID))
    for y, (words, colour) in _spread(labels, axes.get_ylim()):
        _label(axes, y, words, colour)


def _spread(labels: list, limits: tuple[float, float]) -> list:
    """Return labels (y, text, colour) as (y, (text, colour)), moved apart where they collide."""
    room = limits[1] - limits[0]
    placed, ceiling = [], np.inf
    for y, words, colour in sorted(labels, key=lambda label: -label[0]):
        y = min(y, ceiling)
        ceiling = y - APART * room
        placed.append((y, (words, colour)))
    # Pushed below the axes they would meet the panel beneath.
    sunk = max(limits[0] + APART * room - placed[-1][0], 0.0) if len(placed) > 1 else 0.0
    return [(y + sunk, label) for y, label in placed]


def _label(axes: Any, y: float, words: str, colour: str, weight: str = "bold") -> None:
    axes.annotate(
        words,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=11.5,
        fontweight=weight,
        color=colour,
        linespacing=1.35,
        annotation_clip=False,
    )


def _bare(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=FAINT, lw=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=11, labelcolor=GREY, pad=6)
