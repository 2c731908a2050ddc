"""Ctrl-C that arrives while Python cleans up: Python would print it as an exception that was ignored, and go on."""

import os
import signal
import sys
import threading

_SECONDS = 0.05  # until it comes again; the cleaning up is over then


def keep_interrupts() -> None:
    """Send the signal of an interrupt again that Python could not raise, as in a finalizer.

    See https://docs.python.org/3/library/sys.html#sys.unraisablehook.
    """
    before = sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # SIGTERM raises a class of its own; see graftline.processes.Terminated
        signum = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else signal.SIGTERM
        timer = threading.Timer(_SECONDS, os.kill, (os.getpid(), signum))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
