"""The page of an explanation: heat over the text, trace, lens, heads, training text."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from jaxgen.html_page import document

LARGEST = 500_000  # bytes of a page
NOTHING = {
    "tokens": "random tokens (the mean of 4 draws)",
    "mean": "the mean vector of all tokens at each place",
    "zero": "zeros",
}
FOR, AGAINST = (47, 111, 222), (224, 122, 63)  # what raises a token's score, what lowers it
STYLE = """
.heat{font:14px/2 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap;margin:8px 0}
.heat b{font-weight:400;border-radius:3px;padding:2px 0}.heat u{text-decoration-thickness:2px}
.row{display:flex;flex-wrap:wrap;gap:4px 20px;justify-content:space-between}
.row>div{flex:1 1 260px;min-width:0}.row svg{flex:none;width:150px;align-self:end}
summary{font-size:13px;color:var(--soft);cursor:pointer;margin:4px 0 8px}
.wide{overflow-x:auto;margin:0 0 16px}.wide table{font-size:13px}.wide td,.wide th{
padding:2px 12px 2px 0;white-space:pre;text-align:left}.wide td[class]{padding-left:8px}
th{color:var(--soft);font-weight:400}
.map{image-rendering:pixelated;width:100%;border:1px solid var(--line);border-radius:4px;
background:var(--paper)}.maps{display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}.maps p{margin:2px 0;font-size:13px}
.for,.against{color:var(--ink)}.for{background:rgba(47,111,222,.5)}.against{background:rgba(224,122,63,.5)}
""" + "".join(
    f".{name}{i}{{background:rgba({r},{g},{b},{i * 0.07:.2f})}}"
    for name, (r, g, b) in (("p", FOR), ("n", AGAINST))
    for i in range(1, 10)
)


def html(data: dict[str, Any]) -> str:
    """Return the page of an explanation's data, with as many tokens as fit into 500 KB."""
    count = len(data["explained"])
    while True:
        text = document("jaxgen explain", list(_parts(data, count)), style=STYLE)
        if len(text.encode()) < LARGEST or count == 1:
            return text
        count -= 1


def _parts(data: dict[str, Any], count: int) -> Iterator[str]:
    tokens = [_visible(text) for text in data["tokens"]]
    yield f"<h1>Why {escape(data['model']) or 'the model'} says so</h1>"
    yield (
        "<p>Log-probabilities in nats. <span class=for>Blue</span> raises the score of the "
        "underlined token, <span class=against>orange</span> lowers it.</p>"
    )
    yield "<h2>What each token owes to the others</h2>"
    yield (
        f"<p>Gap: what the values leave unexplained of the score's change from "
        f"{NOTHING[data['baseline']]}. "
        "Faithful: the area between the curves of putting in (blue) and of taking away (orange) "
        "the largest first, less that of random orders (dashed); above 0 is better than chance "
        "(in brackets one standard deviation of chance).</p>"
    )
    yield from _cut(count, data["explained"])
    for row, target in enumerate(data["explained"][:count]):
        yield _heat(data, tokens, row, target)
    if data["trace"]:
        yield from _trace(data["trace"], count)
    if data.get("lens"):
        yield from _lens(data, count)
    if data.get("direct"):
        yield from _direct(data, count)
    elif data.get("no_direct"):
        yield f"<h2>Heads</h2><p>{escape(data['no_direct'])}</p>"
    if data["memory"]:
        yield from _memory(data["memory"])


def _cut(count: int, tokens: list[Any]) -> Iterator[str]:
    if count < len(tokens):
        yield f"<p>The first {count} of {len(tokens)} tokens; all are in the JSON.</p>"


def _heat(data: dict[str, Any], tokens: list[str], row: int, target: dict[str, Any]) -> str:
    """Return the card of an explained token, or class: by the first method, others folded away."""
    end = len(tokens) if target["place"] is None else target["place"] + 1
    panels = []
    for method, attribution in data["attributions"].items():
        values = np.asarray(attribution["values"][row], float)
        largest = np.abs(values).max() or 1.0
        spans = []
        for place, text in enumerate(tokens[:end]):
            value = float(values[place]) if place < len(values) else 0.0
            shade = round(9 * abs(value) / largest)
            style = f"{'p' if value > 0 else 'n'}{shade}"
            span = f"<b class={style}>{escape(text)}</b>" if shade else escape(text)
            spans.append(f"<u>{span}</u>" if place == target["place"] else span)
            if place + 1 == data["num_source"]:
                spans.append("\n")
        curves = attribution["faithfulness"]
        title = method.replace("_", " ").capitalize()
        title += f": faithful {curves['gain'][row]:+.2f} ({curves['spread'][row]:.2f})"
        if method == "integrated_gradients" and attribution["gap"][row] is not None:
            title += f", gap {attribution['gap'][row]:.1e} in {attribution['steps']} steps"
        heat = f"<div class=heat>{''.join(spans)}</div>"
        panels.append(
            f"<details{'' if panels else ' open'}><summary>{title}</summary>"
            f"<div class=row><div>{heat}</div>{_curves(curves, row)}</div></details>"
        )
    name = escape(_visible(target["text"]))
    return f"<div class=card style='margin-bottom:16px'><h3>{name}</h3>{''.join(panels)}</div>"


def _curves(curves: dict[str, Any], row: int) -> str:
    """Return a small plot of deletion and insertion, those of random orders dashed."""
    lines = []
    for name, color in (("insertion", FOR), ("deletion", AGAINST)):
        for prefix, dash in (("", ""), ("random_", " stroke-dasharray='4 3'")):
            values = np.clip(np.asarray(curves[f"{prefix}{name}"][row], float), -0.5, 1.5)
            points = " ".join(
                f"{4 + 112 * x:.0f},{50 - 32 * y:.0f}"
                for x, y in zip(curves["shares"], values.tolist(), strict=True)
            )
            lines.append(
                f"<polyline points='{points}' fill=none stroke='rgb{color}' stroke-width=1.5{dash}>"
                f"<title>{prefix.replace('_', ' ')}{name}</title></polyline>"
            )
    lines.append("<path d='M4 50h112' stroke='currentColor' opacity=.3 />")
    return f"<svg viewBox='0 0 120 68' role=img>{''.join(lines)}</svg>"


def _trace(trace: dict[str, Any], count: int) -> Iterator[str]:
    yield "<h2>How each token was chosen</h2>"
    rules = ", ".join(trace["stages"][1:]) or "none"
    yield (
        f"<p>Processors in their order: {escape(rules)}. Each column of the chain is the chosen "
        f"token's log-probability after it, and how many tokens were still allowed. Noise is the "
        f"random number that was added to the token's logit; the margin is its lead over the "
        f"runner-up.</p>"
    )
    yield from _cut(count, trace["steps"])
    stages = "".join(f"<th>{escape(name)}" for name in trace["stages"])
    rows = [f"<tr><th>token<th>rank<th>entropy<th>model's best{stages}<th>noise<th>margin"
            "<th>runner-up<th>forbidden of the likeliest"]  # fmt: skip
    for step in trace["steps"][:count]:
        names = {key: _cell(text) for key, text in step["texts"].items()}
        cells = "".join(
            f"<td>{_number(logprob)} <small>/ {allowed:,}</small>"
            for logprob, allowed in zip(step["logprob"], step["allowed"], strict=True)
        )
        banned = "; ".join(
            f"{names[i]} by {escape(rule)}" for i, rule in step["forbidden_by"].items()
        )
        alone = step["margin"] is None
        rows.append(
            f"<tr><td><b>{names[str(step['token'])]}</b><td>{step['rank'][0]}"
            f"<td>{step['entropy'][0]:.2f}<td>{names[str(step['best'][0])]}{cells}"
            f"<td>{step['noise']:.3f}<td>{'alone' if alone else _number(step['margin'])}"
            f"<td>{'' if alone else names[str(step['rival'])]}<td>{banned}"
        )
    yield _table(rows)


def _lens(data: dict[str, Any], count: int) -> Iterator[str]:
    lens, names = data["lens"], [_cell(target["text"]) for target in data["explained"][:count]]
    yield "<h2>What the layers would say</h2>"
    yield (
        "<p>The likeliest token if the last norm and the output came right after each layer, "
        "shaded by its probability; small: the rank of the token that was made. Layer 0 is the "
        "embedding.</p>"
    )
    rows = ["<tr><th>layer" + "".join(f"<th>{name}" for name in names)]
    for layer in reversed(range(len(lens["rank"]))):
        cells = []
        for row in range(len(names)):
            shade = round(9 * float(np.exp(lens["logprobs"][layer][row][0])))
            text = _cell(lens["texts"][layer][row])
            rank = lens["rank"][layer][row]
            cells.append(f"<td class=p{shade}>{text} <small>{rank:,}</small>")
        rows.append(f"<tr><td>{layer}{''.join(cells)}")
    yield _table(rows)


def _direct(data: dict[str, Any], count: int) -> Iterator[str]:
    direct = data["direct"]
    heads, feed = np.asarray(direct["heads"], float), np.asarray(direct["feed"], float)
    yield "<h2>What heads and layers add to the logit</h2>"
    yield (
        "<p>Rows are layers, the first at the top; columns are heads, and after a gap the "
        "feed-forward. All parts, with the embedding and biases, sum to the logit.</p>"
    )
    maps = []
    for row, target in enumerate(data["explained"][:count]):
        gap = np.zeros((len(feed), 1))
        values = np.concatenate([heads[:, row], gap, feed[:, row, None]], axis=1)
        units = "; ".join(
            f"layer {layer} neuron {unit} {amount:+.2f}"
            for layer, unit, amount in direct.get("neurons", [[]] * (row + 1))[row][:4]
        )
        maps.append(
            f"<div>{_image(values)}<p><b>{escape(_visible(target['text']))}</b> logit "
            f"{direct['logit'][row]:.2f} = embedding {direct['embedded'][row]:+.2f}, heads "
            f"{heads[:, row].sum():+.2f}, feed-forward {feed[:, row].sum():+.2f}, biases "
            f"{direct['bias'][row]:+.2f}<br><small>{units}</small></p></div>"
        )
    yield f"<div class=maps>{''.join(maps)}</div>"
    if not data["heads"]:
        return
    first = escape(_visible(data["explained"][0]["text"]))
    yield f"<h2>Where the heads look that move {first} most</h2>"
    yield "<p>Rows attend to columns; the first token is at the top and on the left.</p>"
    maps = [
        f"<div>{_image(np.asarray(head['probs'], float), 1.0)}<p>layer {head['layer']} head "
        f"{head['head']}: {head['amount']:+.2f}</p></div>"
        for head in data["heads"]
    ]
    yield f"<div class=maps>{''.join(maps)}</div>"


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    yield "<h2>The nearest training text</h2>"
    rows = ["<tr><th>tokens<th>times<th>document<th>copied"]
    rows += [
        f"<tr><td>{copy['length']}<td>{copy['count']:,}<td>{copy['document']}"
        f"<td>{escape(_visible(copy['text']))}"
        for copy in memory["copies"]
    ]
    yield f"<p>Longest verbatim copies.</p>{_table(rows)}"
    rows = ["<tr><th>shared<th>document<th>passage"]
    rows += [
        f"<tr><td>{part['shared']:.0%}<td>{part['document']}<td>{escape(_visible(part['text']))}"
        for part in memory["passages"]
    ]
    yield f"<p>Passages that share most 3-grams.</p>{_table(rows)}"


def _table(rows: list[str]) -> str:
    return f"<div class=wide><table>{''.join(rows)}</table></div>"


def _image(values: np.ndarray, largest: float | None = None) -> str:
    """Return a matrix as an image, a pixel a number: colour is its sign, opacity its size."""
    largest = largest or float(np.abs(values).max()) or 1.0
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where((values > 0)[..., None], FOR, AGAINST)
    pixels[..., 3] = np.round(255 * np.minimum(np.abs(values) / largest, 1) ** 0.7)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 6, 0, 0, 0)
    parts = [(b"IHDR", size), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    raw = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    shape = f"style='aspect-ratio:{values.shape[1]}/{values.shape[0]}'"
    source = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    return f"<img class=map alt='' {shape} src='{source}'>"


def _visible(text: str) -> str:
    """Return a token's text with its newlines and tabs shown."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"


def _cell(text: str) -> str:
    """Return a token's text as the cell of a table, without the space before a word."""
    return escape(_visible(text).strip(" ") or "␣")


def _number(value: float | None) -> str:
    return "forbidden" if value is None or not np.isfinite(value) else f"{value:.2f}"
