"""Settings of one run. For now only the exception that every part raises for bad input."""


class BadInput(ValueError):
    """Bad input from the user. Its text is one clear sentence: which file or setting, why, and what to do about it."""
