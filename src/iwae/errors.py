"""The exception raised for a user's mistake."""


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """
