"""`python -m experiments.restoration`: see `experiments.restoration.comparison`."""

from experiments.restoration.comparison import console

console()
