"""The HTML of a report: one file that holds its pictures and needs no network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #1d2733; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccd3da; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { padding: 0.25em 0.8em; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e7eb; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; } figure { margin: 1em 0; } figcaption { font-size: 14px; }
.key { font-weight: bold; } .note { color: #566270; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Put sections of HTML into a page."""
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Make a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Make a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(name: str, header: Sequence[str], rows: Iterable[Sequence[str]], num_left: int) -> str:
    """Make a table; the first `num_left` columns hold text, the others figures.

    Args:
        name: Identifies the table in the page.
        header: A cell a column.
        rows: Cells of plain text.
        num_left: Columns of text.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "\n".join(f"<tr>{''.join(_cell(cell, i < num_left) for i, cell in enumerate(row))}</tr>" for row in rows)
    return f'<table id="{escape(name)}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>'


def picture(png: bytes, caption: str) -> str:
    """Put a PNG into the page itself."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def folded(summary: str, content: str) -> str:
    """Hide content until the reader asks for it."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def _cell(text: str, is_text: bool) -> str:
    return f"<td>{escape(text)}</td>" if is_text else f'<td class="number">{escape(text)}</td>'
