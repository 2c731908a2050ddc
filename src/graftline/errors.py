"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user asked for or gave.

    The message is one clear sentence that names what is wrong and the way out. Stages print it without a traceback
    (unless ``GRAFTLINE_DEBUG=1``) and exit with 1.
    """
