"""One self-contained HTML page: figures inlined, nothing fetched."""

import base64
import html
from pathlib import Path
from typing import Any

STYLE = """
body { font: 17px/1.55 Georgia, serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2; } h2 { margin-top: 2.6rem; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; padding: .35rem .6rem; border-top: 1px solid #ccc; vertical-align: top; }
.holds { color: #00664d; font-weight: bold; } .fails { color: #a33c00; font-weight: bold; } .note { color: #555; font-size: 15px; }
code { background: #f2f2f2; padding: 0 .25em; }
"""


def write(path: Path, title: str, intro: str, sections: list[dict[str, Any]], footer: str) -> None:
    """Writes the page.

    Args:
      path: the file.
      title, intro, footer: text.
      sections: each with `heading`, `text`, `rows` (what was measured, from `program.claim`), `figures` (PNG paths) and
        `command`.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(intro)}</p>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section['heading'])}</h2><p>{html.escape(section['text'])}</p>")
        body.append(_table(section["rows"]))
        for figure in section["figures"]:
            data = base64.b64encode(figure.read_bytes()).decode()
            alt = html.escape(section["heading"])
            body.append(f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>')
        body.append(f"<p class=note>Run it alone: <code>{html.escape(section['command'])}</code></p>")
    body.append(f"<hr><p class=note>{html.escape(footer)}</p>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    path.write_text(head + "".join(body) + "</html>\n", encoding="utf-8")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["<table><tr><th>what</th><th>measured</th><th>expected</th><th></th></tr>"]
    for row in rows:
        kind, word = ("holds", "holds") if row["holds"] else ("fails", "does not hold")
        cells = "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in ("text", "measured", "expected"))
        lines.append(f'<tr>{cells}<td class="{kind}">{word}</td></tr>')
    return "".join([*lines, "</table>"])
