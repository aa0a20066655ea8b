"""Work on many files in many processes, with few of them in flight at a time."""

import collections
import concurrent.futures
import itertools
import multiprocessing

import cv2

from r2c_gan.errors import UserError

_CHUNK = 8  # jobs a message, so that passing them on costs little
_AHEAD = 4  # messages waiting a worker


def parallel_map(function, jobs, workers=1):
    """Yields `function(job)` for every job, in order; memory does not grow with the number of jobs.

    Close the generator (`contextlib.closing`) if it may not be exhausted, or the processes live until Python ends.

    Args:
        function: a function of one argument that can be pickled.
        jobs: an iterable of arguments that can be pickled.
        workers: processes to use; with 1 the calling process does the work.

    Raises:
        UserError: if a worker process is killed.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    waiting = collections.deque()
    try:
        for chunk in _batched(jobs):
            waiting.append(pool.submit(_map_chunk, function, chunk))
            if len(waiting) >= workers * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError("--workers: a worker process was killed, most likely for memory; use fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(jobs):
    jobs = iter(jobs)
    while chunk := tuple(itertools.islice(jobs, _CHUNK)):
        yield chunk


def _map_chunk(function, chunk):
    return [function(job) for job in chunk]
