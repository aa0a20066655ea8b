"""What a benchmark ran on, for its result.json."""

import importlib.metadata
import platform
import sys
from pathlib import Path


def machine():
    """What was measured on, in words."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = f"{len(names)} x {names[0]}" if names else model
    return {
        "processor": model,
        "tensorflow": _version("tensorflow"),
        "keras": _version("keras"),
        "python": sys.version.split()[0],
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
