"""What a benchmark ran on, for its result.json."""

import platform
import sys
from pathlib import Path


def machine():
    """What was measured on, in words."""
    import keras
    import tensorflow as tf

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = f"{len(names)} x {names[0]}" if names else model
    return {
        "processor": model,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": sys.version.split()[0],
    }
