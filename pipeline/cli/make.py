"""The variables of make's command line, which are a stage's overrides."""


def from_makeflags(makeflags: str) -> list[str]:
    r"""Return the ``KEY=VALUE`` of make's command line, in the order typed; those in capitals are make's own.

    make hands them on in the environment variable MAKEFLAGS, behind a double dash, the last one first, with blanks and
    backslashes escaped and dollars doubled.

    >>> from_makeflags(r"s -- c=a\ b freeze.names=[x,y] PYTHON=python3.12 backbone=resnet18")
    ['backbone=resnet18', 'freeze.names=[x,y]', 'c=a b']
    """
    _, _, variables = f" {makeflags}".partition(" -- ")
    words, word, escaped = [], "", False
    for character in variables + " ":
        if escaped or character not in "\\ ":
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif word:
            words.append(word.replace("$$", "$"))
            word = ""
    return [word for word in reversed(words) if not word.partition("=")[0].isupper()]
