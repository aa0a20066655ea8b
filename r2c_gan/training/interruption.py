"""A training that is asked to end (Ctrl-C, SIGTERM) ends after the step it is in."""

import signal
import threading


class Interruption:
    """While it is entered, remembers that SIGINT or SIGTERM came instead of dying of it; a second one is not held up.

    Python handles signals in the main thread only; entered in another, it leaves them as they are.

    Attributes:
        signal: number of the signal that came, None if none did.
    """

    def __init__(self):
        self.signal = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_):
        self._restore()

    def _remember(self, number, frame):
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
