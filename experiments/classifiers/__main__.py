"""`python -m experiments.classifiers`: see `experiments.classifiers.training`."""

from experiments.classifiers.training import console

console()
