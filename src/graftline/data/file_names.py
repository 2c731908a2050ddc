r"""Write names of files as text that any table can hold, though a file system allows bytes that are not UTF-8.

Such bytes stand as \xNN. Needs nothing but Python, as the predictor imports it in a small container.
"""

import os
import re

_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def to_text(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text.

    >>> to_text("caf\udce9.png") == r"caf\xe9.png"
    True
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def to_path(text: str | os.PathLike[str]) -> str:
    r"""Return the path that a text stands for: itself if there is such a file, else the one that `to_text` wrote so.

    >>> to_path(r"caf\xe9.png") == "caf\udce9.png"
    True
    """
    text = os.fspath(text)
    if "\\x" not in text or os.path.lexists(text):
        return text
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(text)))
