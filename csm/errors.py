"""The one exception that a user's input can cause; its text is the one sentence the user reads."""


class InputError(ValueError):
    """Input that can't be used. The message says what is wrong and what to do, in one plain sentence.

    `code` names the case for a program that has to know it again; most have none.
    """

    def __init__(self, sentence: str = "", code: str = "") -> None:
        super().__init__(sentence)
        self.code = code
