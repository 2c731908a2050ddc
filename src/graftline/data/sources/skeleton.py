"""The skeleton of a folder at a URL: its folders with empty files, which the rules for a folder here list."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import unescape
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote

from graftline.data.remote import list_urls
from graftline.errors import UserError


@contextmanager
def skeleton(url: str) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield a folder like that at a URL, whose files are empty, and the URL of each; it is gone after the block.

    Raises:
        UserError: there are no files, or the storage cannot be reached.
    """
    url = url.rstrip("/")
    with TemporaryDirectory() as made:
        folder, urls = Path(made) / PurePosixPath(url).name, dict[str, str]()
        for one in list_urls(url):
            names = one.removeprefix(url).strip("/").split("/")
            if url.startswith("http"):
                names = [_from_link(name) for name in names]
            if ".." in names:  # what a server lists leads nowhere else
                continue
            file = folder.joinpath(*names)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            urls[str(file)] = "/".join([url, *map(in_url, names)]) if url.startswith("http") else one
        if not urls:
            raise UserError(f"There is nothing at {url}: give the folder that has a sub-folder of images per class.")
        yield folder, urls


def in_url(name: str) -> str:
    """Return a name as it stands in a URL of the web: as it is, but for signs that would end it there.

    >>> in_url("50 % off #1.png")
    '50 %25 off %231.png'
    """
    return re.sub("[%#?]", lambda sign: quote(sign[0]), name)


def _from_link(name: str) -> str:
    """Return a name that stands in a link of a server's page as the file has it."""
    try:
        return unquote(unescape(name), errors="strict")
    except UnicodeDecodeError:  # it is not in UTF-8
        return name
