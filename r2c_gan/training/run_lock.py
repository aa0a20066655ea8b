"""One process at a time trains in a run folder."""

import contextlib
import fcntl
import os
import platform
from pathlib import Path

from absl import logging

from r2c_gan.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def run_lock(run):
    """Holds a run folder, which is made if missing; it is deleted again if nothing was put into it.

    The lock is the operating system's: it goes with the process, however that ends.

    Args:
        run: the run folder.

    Yields:
        A function that raises a `UserError` if the folder was moved, deleted or replaced in the meantime. To write
        there then would make half a run in its place.

    Raises:
        UserError: if another process holds it, or the folder cannot be written.
    """
    run = Path(run)
    made = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--output_dir={run}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            raise UserError(
                f"{run}: is being trained by another process{f' ({holder})' if holder else ''}; wait for it, or give "
                "another --output_dir"
            ) from error
        except OSError as error:  # some network file systems know no locks
            logging.warning("%s: cannot be locked (%s); see to it that no other process trains there", run, error)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

        def still_there():
            try:
                same = os.path.samestat(os.fstat(descriptor), os.stat(run / LOCK))
            except OSError:
                same = False
            if not same:
                raise UserError(
                    f"{run}: was moved or deleted during the training, which ends here and has written nothing more; "
                    "go on by the same command with --output_dir where the folder is now"
                )

        try:
            yield still_there
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        if made and run.is_dir() and [path.name for path in run.iterdir()] == [LOCK]:
            (run / LOCK).unlink()
            run.rmdir()
        os.close(descriptor)
