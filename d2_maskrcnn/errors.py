"""The one exception of this package that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input: a file, a config key or a value that the person who started the program can mend.

    The message is one line: what is wrong, where, what was expected and how to mend it. Command-line programs print it
    without a traceback and exit with a non-zero status (see :func:`d2_maskrcnn.engine.run_main`).
    """
