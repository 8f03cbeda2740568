"""Pages that need nothing else: one style for all of them, and the document around their parts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1c2026;--soft:#5d6570;--line:#e4e7ec;--paper:#fff;
--back:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#9aa3af;--line:#2d333c;
--paper:#1b1f25;--back:#13161b}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:32px;margin:0 0 4px;letter-spacing:-.02em}h2{font-size:22px;margin:48px 0 2px}
p{margin:4px 0 16px;color:var(--soft);max-width:760px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:16px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:12px;
padding:14px 16px 10px}
.card h3{font-size:15px;margin:0}.card h3 small{font-weight:400;color:var(--soft);float:right}
.card p{font-size:13px;line-height:1.35;margin:2px 0 8px}
svg{width:100%;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
table{border-collapse:collapse;font-size:14px}td{padding:3px 18px 3px 0;vertical-align:top}
td:first-child{color:var(--soft)}
"""


def document(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """Return the page of a title and parts of HTML, in one column."""
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width,initial-scale=1'>",
            f"<title>{escape(title)}</title><style>{STYLE}{style}</style><main>",
            *parts,
            "</main></html>",
        ]
    )
