"""The command-line programs, one a module. Flags are read here and nowhere else."""
