"""The one exception that is the user's to mend, and what of others' fits into a sentence of ours."""


class UserError(ValueError):
    """A mistake in what the user asked for or gave.

    The message is one clear sentence that names what is wrong and the way out. Stages print it without a traceback
    (unless ``GRAFTLINE_DEBUG=1``) and exit with 1.
    """


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message without its full stop, or the error's name if it has none.

    >>> first_line(OSError("No such file.\nTry another.")), first_line(KeyError())
    ('No such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
