"""What the pages of the documentation tell their readers to type: commands, keys and Python."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workplace import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n", re.MULTILINE)
_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_COMMAND = re.compile(
    r"(?:make|graftline|\S*python -m (?:graftline\.)?pipeline"  # what starts stages, also in containers
    r"|docker run .* graftline(?::\w+)?|docker compose .* run(?: --\S+| \S+:\S+)*) +([a-z].*)"
)


@dataclass(frozen=True)
class Command:
    """A stage or rule with what follows it; a mention in a sentence may leave out what the stage needs."""

    name: str
    words: tuple[str, ...]
    is_mention: bool


@dataclass(frozen=True)
class Page:
    """The code of a page, by kind."""

    shell: tuple[str, ...]
    python: tuple[str, ...]
    spans: tuple[str, ...]

    def commands(self) -> Iterator[Command]:
        """Yield what starts a stage or a rule of the Makefile."""
        for line, is_mention in [*((line, False) for line in self.shell), *((span, True) for span in self.spans)]:
            if (match := _COMMAND.fullmatch(line)) is not None:
                name, *words = shlex.split(match[1], comments=True)
                yield Command(name, tuple(word for word in words if not is_placeholder(word)), is_mention)


def read_page(file: Path) -> Page:
    """Take a page's code apart."""
    text = file.read_text(encoding="utf-8")
    fences = [(match[2], match[3]) for match in _FENCE.finditer(text)]
    prose = _FENCE.sub("", text)
    blocks = [body for language, body in fences if language == "sh"]
    blocks += [match[0] for match in _INDENTED.finditer(prose) if re.search(r"^ {4}[a-z./]+ ", match[0], re.MULTILINE)]
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    spans = [" ".join(match[2].split()) for match in _SPAN.finditer(_INDENTED.sub("", prose))]
    python = [body for language, body in fences if language == "python"]
    return Page(tuple(line.strip() for line in lines if line.strip()), tuple(python), tuple(spans))


def is_placeholder(word: str) -> bool:
    """Tell whether a word stands for what the reader has, or is a flag."""
    return word == "key=value" or re.search(r"^--|^[A-Z]+$|(?:…|\.\.\.|=[A-Z]+)$", word) is not None
