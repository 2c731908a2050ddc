"""The exception for a user's mistake, and the first line of other exceptions for its message."""


class UserError(ValueError):
    """A mistake in what the user asked for or gave.

    The message is one clear sentence that names what is wrong and the way out, with arguments named as
    ``Class.argument``. The command line prints it in the words of its keys, without a traceback.
    """


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message without its full stop, or the error's name if it has none.

    >>> first_line(OSError("No such file.\nTry another.")), first_line(KeyError())
    ('No such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def find_cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind behind an error, itself included: libraries wrap what is raised inside of them."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
