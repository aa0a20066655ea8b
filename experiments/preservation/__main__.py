"""`python -m experiments.preservation`: see `experiments.preservation.study`."""

from experiments.preservation.study import console

console()
