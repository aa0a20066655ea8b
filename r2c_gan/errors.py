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
