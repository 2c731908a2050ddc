"""The skeleton of a folder at a URL: its folders with empty files, which the rules for a folder here list."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from graftline.data.remote import list_urls
from graftline.errors import UserError


@contextmanager
def skeleton(url: str) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield a folder like that at a URL, whose files are empty, and the URL of each; it is gone after the block.

    Raises:
        UserError: there are no files, or the storage cannot be reached.
    """
    with TemporaryDirectory() as made:
        folder, urls = Path(made) / PurePosixPath(url).name, dict[str, str]()
        for one in map(_plain, list_urls(url)):
            inner = PurePosixPath(one.removeprefix(url).lstrip("/"))
            if ".." in inner.parts or inner.is_absolute():  # what a server lists leads nowhere else
                continue
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            (folder / inner).touch()
            urls[str(folder / inner)] = one
        if not urls:
            raise UserError(f"There is nothing at {url}: give the folder that has a sub-folder of images per class.")
        yield folder, urls


def _plain(url: str) -> str:
    """Return a URL with the names that files have, where a server's page has them as they stand in links."""
    plain = unquote(url) if url.startswith("http") else url
    return url if re.search(r"[%#?]", plain) else plain
