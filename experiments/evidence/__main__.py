"""`python -m experiments.evidence`: see `experiments.evidence.study`."""

from experiments.evidence.study import console

console()
