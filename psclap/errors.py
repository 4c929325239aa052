"""The one kind of error a user can mend.

Raised at the doors (files, configuration, command line) with the value, the rule and the way out in the
message; the command line and the stages print it without a traceback. Anything else that is raised is a bug.
"""


class PsclapError(ValueError):
    """Bad input: the message names the value, the rule it breaks and how to mend it."""


class ConfigError(PsclapError):
    """A params file breaks its rules; lists every broken key."""


class AudioError(PsclapError):
    """Audio that cannot be used; `reason` is the short label that reject lists count by.

    `detail` says what was found, without the path (the caller knows which file it asked for).
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # the arguments as they are, so that it survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class CheckpointError(PsclapError):
    """A checkpoint folder is missing, partial or of another architecture."""


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, or its name where it says nothing: for messages of one sentence.

    >>> first_line(ValueError("no header\nat byte 0")), first_line(EOFError())
    ('no header', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
