"""The one exception that means: what you gave us cannot be used."""


class InputError(ValueError):
    """Bad input. The message is one line that names the file or key, what is wrong, and what to do.

    The door (`configure.main`, `python -m tl_research`) prints it and exits with status 2; nothing else
    catches it. Anything that is not an `InputError` is a defect of ours and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
