"""Every training of the paper's comparisons, its tables and figures."""
