"""What every program shares: absl start-up, errors as one line, the record of its flags."""

import os
import sys
import tempfile
import warnings

from absl import app, flags

from r2c_gan import files
from r2c_gan.errors import Interrupted, UserError


def run(main, usage):
    """Parses the flags, calls `main()` and exits.

    A `UserError` and a wrong flag become one line on standard error and exit code 1; an interruption, one line and
    128 plus the signal's number (Ctrl-C: 130, SIGTERM: 143).

    Args:
        main: a function of no arguments.
        usage: what `--help` shows first.
    """
    sys.modules["__main__"].__doc__ = usage
    # Of a bright film from a file; `Restorer` says it to callers whose arrays may have another range.
    warnings.filterwarnings("ignore", message="all values lie in")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on its own start

    def guarded(arguments):
        if len(arguments) > 1:
            raise UserError(f"{arguments[1]!r}: unexpected argument; everything is given by --flags, see --help")
        return main()

    try:
        app.run(guarded, flags_parser=lambda arguments: _parse(arguments, usage))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        print("error: this needs TensorFlow, which is not installed: pip install tensorflow", file=sys.stderr)
        sys.exit(1)
    except Interrupted as interruption:
        print(f"interrupted: {interruption}", file=sys.stderr)
        sys.exit(128 + interruption.signal)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(arguments, usage):
    if {"--help", "-help", "-h", "--helpshort"} & set(arguments[1:]):
        # absl shows the flags of the module that was started, which for an installed program is a script with none.
        print(usage.strip() + "\n\nFlags:\n")
        for module in sorted(filter(_is_ours, flags.FLAGS.flags_by_module_dict())):
            print(flags.FLAGS.module_help(module).strip().partition("\n")[2])
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error).removeprefix("FATAL Flags parsing error:").strip()) from error


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
