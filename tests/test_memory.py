"""Available memory, from made-up /proc and /sys/fs/cgroup files."""

import pytest

from r2c_gan.restoration import memory

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MACHINE = {"proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:   {40 * GIB // 1024} kB\n"}


def test_the_machine(tmp_path):
    assert memory.available(tmp_path) is None
    write(tmp_path, MACHINE)
    assert memory.available(tmp_path) == 40 * GIB


@pytest.mark.parametrize(("limit", "expected"), [("max", 40), (str(20 * GIB), 20 - 5 + 2), (str(4 * GIB), 1)])
def test_a_control_group_of_version_2(tmp_path, limit, expected):
    group = "sys/fs/cgroup/user/session"
    write(tmp_path, MACHINE)
    write(tmp_path, {"proc/self/cgroup": "0::/user/session\n", f"{group}/memory.max": limit})
    used = 3 if expected == 1 else 5
    cached = 0 if expected == 1 else 2
    write(
        tmp_path,
        {
            f"{group}/memory.current": str(used * GIB),
            f"{group}/memory.stat": f"anon 7\ninactive_file {cached * GIB}\n",
        },
    )
    assert memory.available(tmp_path) == expected * GIB


def test_the_narrowest_group_above_counts(tmp_path):
    write(tmp_path, MACHINE)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": str(8 * GIB),
            "sys/fs/cgroup/a/memory.current": str(GIB),
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/b/memory.current": str(GIB),
        },
    )
    assert memory.available(tmp_path) == 7 * GIB


def test_a_control_group_of_version_1(tmp_path):
    folder = "sys/fs/cgroup/memory/docker/1"
    write(tmp_path, MACHINE)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/1\n",
            f"{folder}/memory.limit_in_bytes": str(6 * GIB),
            f"{folder}/memory.usage_in_bytes": str(2 * GIB),
            f"{folder}/memory.stat": f"total_inactive_file {GIB}\n",
        },
    )
    assert memory.available(tmp_path) == 5 * GIB
