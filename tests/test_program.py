"""What every program shares: how it ends when nobody reads, what libraries may say, and odd names."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def command(body, *arguments):
    """A program whose `main` is `body`."""
    script = "\n".join(
        [
            "import logging, os, sys, warnings",
            "from absl import flags",
            "from r2c_gan import files",
            "from r2c_gan.cli import program",
            "from r2c_gan.errors import UserError",
            "flags.DEFINE_string('folder', None, 'Of ours.', module_name='r2c_gan.cli.x')",
            "def main():",
            textwrap.indent(textwrap.dedent(body), "    "),
            "program.run(main, 'usage')",
        ]
    )
    return [sys.executable, "-c", script, *arguments]


def environment(**variables):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}


def run(body, *arguments, shell_end="", **options):
    """Runs it; with `shell_end`, through a shell that appends this to the command."""
    options = {"env": environment(), "capture_output": True, **options}
    if not shell_end:
        return subprocess.run(command(body, *arguments), **options)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {shell_end}', "-", *command(body, *arguments)], **options
    )


@pytest.mark.parametrize(
    "body",
    [
        "print('line')",
        "for _ in range(100_000): print('line', flush=True)",
        "print('x' * 999_999); raise UserError('no')",
    ],
    ids=["at the end", "while it prints", "at an error"],
)
def test_nobody_reads(body):
    found = run(body, shell_end="| true")
    assert found.returncode in (1, 141) and b"Traceback" not in found.stderr and b"Exception" not in found.stderr


def test_standard_error_is_read_by_nobody():
    found = run("sys.stderr.write('x' * 999_999 + '\\n'); sys.stderr.flush()", shell_end="2> >(true)")
    assert found.returncode == 141 and found.stdout == b""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    """A file that is opened does not get the number of standard error, into which libraries write."""
    body = f"""
        with open({str(tmp_path / "file")!r}, "w") as file:
            file.write(str(file.fileno()))
            os.write(2, b"libtiff: oh")
            print("words"), print("words", file=sys.stderr)
        raise UserError("a.png: empty")
    """
    assert run(body, shell_end=closed).returncode == 1
    text = (tmp_path / "file").read_text()
    assert text.isdigit() and int(text) > 2


def test_standard_output_on_a_full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    found = run("print('words')", shell_end="> /dev/full")
    assert found.returncode == 1 and found.stderr.count(b"\n") == 1
    assert found.stderr.startswith(b"error: ") and found.stderr.endswith(b"No space left on device\n")


def test_libraries_are_quiet_and_we_are_not(tmp_path):
    body = """
        warnings.warn_explicit("of a library", UserWarning, "/usr/lib/python3/PIL/Image.py", 1)
        warnings.warn_explicit("of ours", UserWarning, files.__file__, 1)
        for name in ("pydicom", "PIL.TiffImagePlugin", "tifffile"):
            logging.getLogger(name).error("Invalid value for VR")
        import pydicom
        logging.getLogger("pydicom").error("Invalid value for VR")
    """
    found = run(body)
    assert (found.returncode, found.stderr) == (0, b"warning: of ours\n")


def test_an_error_is_one_line(tmp_path):
    found = run(f"open({str(tmp_path / 'missing.csv')!r})")
    assert found.returncode == 1
    assert found.stderr.decode() == f"error: {tmp_path / 'missing.csv'}: No such file or directory\n"
    found = run("raise UserError('a\\n b\\x1b[31m.png: empty')")
    assert found.stderr == b"error: a b [31m.png: empty\n"


def test_an_empty_path_is_not_the_current_folder():
    found = run("print('ran')", "--folder=")
    assert (found.returncode, found.stdout) == (1, b"")
    assert found.stderr == b"error: --folder is empty: give it a value, or leave it out\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_any_name_can_be_printed(locale):
    name = b"caf\xe9 M\xc3\xbcller.png"
    body = "print(os.fsdecode(sys.stdin.buffer.read()), '\\u2192'); raise UserError('\\udce9')"
    variables = environment(LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    found = run(body, env=variables, input=name)
    arrow = b"\\u2192" if locale == "C" else "→".encode()
    assert (found.returncode, found.stdout, found.stderr) == (1, name + b" " + arrow + b"\n", b"error: \xe9\n")
