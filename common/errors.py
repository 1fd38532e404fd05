"""The one exception that a user's own mistake raises."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do about it."""
