"""Write a self-contained HTML page with inlined figures."""

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

WIDTHS = (9.0, 4.0)  # inches of a figure on a wide and on a narrow screen
STYLE = """
body { font: 17px/1.55 Georgia, serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2; } h2 { margin-top: 2.6rem; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; padding: .35rem .6rem; border-top: 1px solid #ccc; vertical-align: top; }
.scroll { overflow-x: auto; } td:last-child { overflow-wrap: anywhere; }
h1, h2, p, summary { overflow-wrap: anywhere; } picture { display: block; } summary { cursor: pointer; }
.holds { color: #00664d; font-weight: bold; } .fails { color: #a33c00; font-weight: bold; } .note { color: #555; font-size: 15px; }
code { background: #f2f2f2; padding: 0 .25em; } pre { background: #f2f2f2; padding: .7rem; overflow-x: auto; font-size: 14px; }
.big { display: flex; flex-wrap: wrap; gap: 1.2rem; margin: 1.4rem 0; font-family: Helvetica, Arial, sans-serif; }
.big div { border-left: 5px solid #0072B2; padding: .1rem 1rem; min-width: 11rem; } .big div.other { border-color: #999; }
.big b { display: block; font-size: 2.7rem; line-height: 1.1; } .big span { color: #555; font-size: 15px; }
.warning { border-left: 5px solid #D55E00; padding: .2rem 1rem; margin: .8rem 0; }
@media (max-width: 640px) { body { margin: 1rem auto; } th, td { padding: .3rem; } .big b { font-size: 2.2rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } h1 { font-size: 1.6rem; } }
.text { font: 15px/1.7 Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def write(path: Path, title: str, intro: str, sections: list[dict[str, Any]], footer: str) -> None:
    """Write the page of several experiments.

    Args:
      path: the file.
      title, intro, footer: text.
      sections: dicts with `heading`, `text`, `rows` (from `program.claim`), `figures` (PNG paths)
        and `command`.
    """
    body = [f"<p>{html.escape(intro)}</p>"]
    for section in sections:
        body.append(
            f"<h2>{html.escape(section['heading'])}</h2><p>{html.escape(section['text'])}</p>"
        )
        body.append(_claims(section["rows"]))
        body += [image(figure.read_bytes(), section["heading"]) for figure in section["figures"]]
        body.append(
            f"<p class=note>To reproduce this section: "
            f"<code>{html.escape(section['command'])}</code></p>"
        )
    document(path, title, body, footer)


def document(path: Path, title: str, body: Iterable[str], footer: str) -> None:
    """Write a page from HTML fragments and a title and footer in plain text.

    An older file is replaced atomically.
    """
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    text = f"{head}<h1>{html.escape(title)}</h1>{''.join(body)}<hr><p class=note>{html.escape(footer)}</p></html>\n"
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def image(png: bytes, alt: str) -> str:
    """Return a figure as HTML."""
    return f'<p><img alt="{html.escape(alt)}" src="{_inline(png)}"></p>'


def picture(draw: Callable[[float], bytes], alt: str) -> str:
    """Return a figure as HTML, drawn twice: wide, and narrow for a telephone.

    Args:
      draw: width in inches -> PNG; text of 9 points is legible at both widths.
      alt: description.
    """
    wide, narrow = (_inline(draw(width)) for width in WIDTHS)
    source = f'<source media="(max-width: 640px)" srcset="{narrow}">'
    return f'<picture>{source}<img alt="{html.escape(alt)}" src="{wide}"></picture>'


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as HTML; cells are plain text."""
    lines = (
        ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>"]
        if header
        else []
    )
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _claims(rows: list[dict[str, Any]]) -> str:
    lines = [
        "<table><tr><th>claim</th><th>quantity</th><th>measured</th><th>expected</th><th></th></tr>"
    ]
    for row in rows:
        kind, word = ("holds", "holds") if row["holds"] else ("fails", "does not hold")
        cells = "".join(
            f"<td>{html.escape(str(row[name]))}</td>"
            for name in ("claim", "text", "measured", "expected")
        )
        lines.append(f'<tr>{cells}<td class="{kind}">{word}</td></tr>')
    return "".join([*lines, "</table>"])
