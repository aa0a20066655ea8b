"""`python -m experiments.benchmarks`: see `experiments.benchmarks.training_step`."""

from experiments.benchmarks.training_step import console

console()
