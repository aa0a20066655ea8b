"""What every program shares: absl start-up, errors as one line, the record of its flags."""

import codecs
import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from absl import app, flags

from r2c_gan import files
from r2c_gan.errors import Interrupted, UserError


def run(main, usage):
    """Parses the flags, calls `main()` and exits.

    A `UserError`, a wrong flag and a file that the system will not read or write become one line on standard error and
    exit code 1; an interruption, one line and 128 plus the signal's number (Ctrl-C: 130, SIGTERM: 143). Where nobody
    reads what is printed any more (`| head`), the program ends without a word, with 141, as one does of SIGPIPE.
    What libraries warn of is not shown, unless Python is asked to (`python -W default`).

    Args:
        main: a function of no arguments.
        usage: what `--help` shows first.
    """
    sys.modules["__main__"].__doc__ = usage
    # Of a bright film from a file; `Restorer` says it to callers whose arrays may have another range.
    warnings.filterwarnings("ignore", message="all values lie in")
    # One line, for those who run a program and have no use for its source.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on its own start
    _ready_streams()
    _quiet_libraries()

    def guarded(arguments):
        if len(arguments) > 1:
            raise UserError(f"{arguments[1]!r}: unexpected argument; everything is given by --flags, see --help")
        return main()

    code = 0
    try:
        app.run(guarded, flags_parser=lambda arguments: _parse(arguments, usage))
    except SystemExit as stop:
        code = stop.code
    except UserError as error:
        code = _say(f"error: {error}", 1)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        code = _say("error: this needs TensorFlow, which is not installed: pip install tensorflow", 1)
    except Interrupted as interruption:
        code = _say(f"interrupted: {interruption}", 128 + interruption.signal)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except BrokenPipeError:
        code = _UNREAD
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        code = _say(f"error: {where}{error.strerror}", 1)
    sys.exit(_flushed(code))


_UNREAD = 128 + 13  # SIGPIPE


def _ready_streams():
    """Makes standard output and error usable, if they were closed, and fit for any file name, in any locale."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # or the next file that is opened would get the number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


_ERRORS = "r2c_gan.names"


def _encode_name(error):
    """Bytes of file names as they are; other characters that a stream cannot hold as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_ERRORS, _encode_name)


def _quiet_libraries():
    """What is wrong with a file is said once, by us."""
    if not sys.warnoptions:
        warnings.showwarning = _show_warning
    for name in ("PIL", "pydicom", "pylibjpeg", "tifffile", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        logging.getLogger(name).disabled = True  # pydicom sets its level when it is imported


def _show_warning(message, category, filename, lineno, file=None, line=None):
    path = Path(filename)
    top = Path(files.__file__).parents[1]
    if path.is_relative_to(top) and path.relative_to(top).parts[0] in ("r2c_gan", "data_prep", "experiments"):
        _say(f"warning: {message}", 0)


def _say(text, code):
    """Prints a line on standard error, if somebody reads it; returns `code`."""
    text = re.sub(r"\s*[\x00-\x1f\x7f]+\s*", " ", text)
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    return code


def _flushed(code):
    """Writes out what is buffered; returns the exit code. Python itself would complain of a closed pipe at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or _UNREAD
        except (OSError, ValueError) as error:
            code = _say(f"error: standard output: {error.strerror}", 1) if isinstance(error, OSError) else code or 1
        else:
            continue
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _parse(arguments, usage):
    if {"--help", "-help", "-h", "--helpshort"} & set(arguments[1:]):
        # absl shows the flags of the module that was started, which for an installed program is a script with none.
        print(usage.strip() + "\n")
        for module in sorted(filter(_is_ours, flags.FLAGS.flags_by_module_dict())):
            _, _, title = module.rpartition("/")  # a group of `option_flags`
            print(
                (f"{title}:\n" if "/" in module else "Flags:\n")
                + flags.FLAGS.module_help(module).strip().partition("\n")[2]
            )
        sys.exit(0)
    try:
        rest = flags.FLAGS(arguments)
    except (flags.Error, UnicodeError) as error:
        raise UserError(str(error).removeprefix("FATAL Flags parsing error:").strip()) from error
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.value == "" and flag.default is None and _is_ours(flags.FLAGS.find_module_defining_flag(name)):
            raise UserError(f"--{name} is empty: give it a value, or leave it out")  # a path of "" is the folder itself
    return rest


def start_tensorflow(only=False):
    """Imports Keras and its backend, without TensorFlow's notes on the machine, written before it can be told not to.

    If the import fails, they are shown. Of a GPU's memory TensorFlow then takes what it needs, not all.

    Args:
        only: whether the program needs TensorFlow as the backend of Keras.

    Raises:
        UserError: if the backend is not installed, or another one is needed.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import keras

            backend = keras.backend.backend()
            if backend == "tensorflow":
                import tensorflow as tf

                for gpu in tf.config.list_physical_devices("GPU"):
                    tf.config.experimental.set_memory_growth(gpu, True)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed, which Keras was to run on; set KERAS_BACKEND to tensorflow or jax, "
                "whichever is installed"
            ) from error
        except BaseException:
            notes.seek(0)
            os.write(shown, notes.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
    if backend not in ("tensorflow", "jax") or (only and backend != "tensorflow"):
        raise UserError(f"KERAS_BACKEND={backend}: must be tensorflow{'' if only else ' or jax'} for this program")


def write_flags(folder):
    """Writes every flag of the running program to `folder/flags.txt`, in the form that `--flagfile` reads."""
    module = flags.FLAGS.find_module_defining_flag
    names = [name for name in flags.FLAGS if _is_ours(module(name))]
    lines = [flags.FLAGS[name].serialize() for name in sorted(set(names))]
    files.write_text(f"{folder}/flags.txt", "".join(line + "\n" for line in lines if line))


def _is_ours(module):
    return module is not None and (
        module.startswith(("r2c_gan.", "data_prep.", "experiments.")) or module == sys.argv[0]
    )
