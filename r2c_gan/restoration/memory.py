"""How much memory this process may still take."""

from pathlib import Path


def available(root="/"):
    """Bytes that can still be taken without swapping: of the machine, and of the control groups that limit the process.

    Args:
        root: where the file system begins.

    Returns:
        An integer; None where the system does not tell (only Linux does).
    """
    root = Path(root)
    limits = [_of_machine(root), *_of_groups(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_machine(root):
    return _field(root / "proc/meminfo", "MemAvailable:", 1024)


def _of_groups(root):
    """What is left in each control group above the process, of either version; what files are cached can be freed."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        limit, usage, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = top / path.strip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(top):
                break
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                yield max(0, most - used + (_field(folder / "memory.stat", cached) or 0))


def _number(path):
    """The number that a file holds; None if there is none, or if it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path, name, unit=1):
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
