"""The one exception that a user's input can cause; its text is the one sentence the user reads."""


class InputError(ValueError):
    """Input that can't be used. The message says what is wrong and what to do, in one plain sentence."""
