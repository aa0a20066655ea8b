"""The one exception family that a program turns into a line and exit code 1."""


class UserError(Exception):
    """Something that the person who called can put right.

    The message names the file or the flag and says what would be right. The programs print it and exit with code 1;
    any other exception is a defect and keeps its traceback.
    """
