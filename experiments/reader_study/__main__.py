"""A blinded comparison of original and restored radiographs by readers, in two programs.

  python -m experiments.reader_study.make      makes the page that readers open
  python -m experiments.reader_study.analyse   analyses the answers that they saved

`--help` of each has its command and its flags.
"""

from r2c_gan.cli import program
from r2c_gan.errors import UserError


def main():
    raise UserError("name one of the two programs: experiments.reader_study.make or experiments.reader_study.analyse")


if __name__ == "__main__":
    program.run(main, __doc__)
