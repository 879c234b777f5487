"""What a user did wrong, in one sentence."""


class BadInput(ValueError):
    """Bad input from the user. Its text is one clear sentence: which file or setting, why, and what
    to do about it.
    """
