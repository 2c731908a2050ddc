"""The frame of every page: one HTML file that needs nothing else, and a content security policy that keeps it so."""

from html import escape
from importlib.resources import files

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


def page(title: str, body: str, footer: str, style: str = "") -> str:
    """Return a page, in the reader's choice of light or dark.

    Args:
        title: plain text.
        body: HTML, and so is the footer.
        footer: what wrote it.
        style: CSS beside that of all pages.
    """
    css = files("graftline.report").joinpath("report.css").read_text(encoding="utf-8")
    return PAGE.format(title=escape(title), style=css + style, body=body, footer=footer)
