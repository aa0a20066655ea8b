"""What every program shares: absl start-up, errors as one line, the record of its flags."""

import os
import sys
import tempfile

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


def start_tensorflow():
    """Imports TensorFlow without its notes on the machine, which it writes before it can be told not to.

    If the import fails, they are shown. Of a GPU's memory it then takes what it needs, not all.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf

            for gpu in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(gpu, True)
        except BaseException:
            notes.seek(0)
            os.write(shown, notes.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


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
