"""The one exception family that a program turns into a line and exit code 1."""


class UserError(Exception):
    """Something that the person who called can put right.

    The message names the file or the flag and says what would be right. The programs print it and exit with code 1;
    any other exception is a defect and keeps its traceback.
    """


class Interrupted(Exception):
    """A program that was asked to end, and has put in order what it leaves behind.

    Attributes:
        signal: number of the signal that asked; a shell expects the exit code 128 + signal.
    """

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


def reason(error, path):
    """Why one file could not be used, as a line that does not name it.

    Args:
        error: any exception.
        path: the file, with which the message of a `UserError` begins.
    """
    if isinstance(error, UserError):
        return str(error).removeprefix(f"{path}: ")
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return " ".join(f"cannot be read ({type(error).__name__}: {error})".split())


def shown(path):
    """A path as text that can be printed and written; bytes that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
