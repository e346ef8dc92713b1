"""Threads: as many as the cores that a process may use, and no more than a container's quota pays for."""

import os

import pytest
import torch

from anomalib_lite.machine import threads
from anomalib_lite.machine.threads import cpu_quota, limit_threads, usable_cores


def tree(tmp_path, own, **files):
    """A folder of control groups, and the file that names this process's own."""
    root = tmp_path / "cgroup"
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "own").write_text(own)
    return root, tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu_DOT_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_DOT_max": "max 100000\n"}, None),
        ("0::/kube/pod\n", {"kube__pod__cpu_DOT_max": "max 100000", "kube__cpu_DOT_max": "200000 100000"}, 2.0),
        ("0::/kube/pod\n", {"kube__pod__cpu_DOT_max": "50000 100000", "kube__cpu_DOT_max": "200000 100000"}, 0.5),
        ("0::/seen/elsewhere\n", {"cpu_DOT_max": "300000 100000"}, 3.0),
        (
            "4:cpu,cpuacct:/docker/a\n1:name=systemd:/x\n",
            {
                "cpu,cpuacct__docker__a__cpu_DOT_cfs_quota_us": "100000",
                "cpu,cpuacct__docker__a__cpu_DOT_cfs_period_us": "100000",
            },
            1.0,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct__cpu_DOT_cfs_quota_us": "-1", "cpu,cpuacct__cpu_DOT_cfs_period_us": "100000"},
            None,
        ),
        ("0::/\n", {"cpu_DOT_max": "nonsense"}, None),
        ("0::/\n", {"cpu_DOT_max": "100 0"}, None),
        ("0::/\n", {}, None),
    ],
    ids=range(10),
)
def test_quota(tmp_path, own, files, expected):
    assert cpu_quota(*tree(tmp_path, own, **files)) == expected


def test_no_quota_where_there_are_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.5, 1), (1.5, 2), (64.0, 4)])
def test_usable_cores(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert usable_cores.__wrapped__() == expected


@pytest.mark.parametrize(("cores", "said", "expected"), [(1, "", 1), (64, "", None), (1, "2", None)])
def test_torch_starts_no_more_threads_than_there_are_cores(monkeypatch, cores, said, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    limit_threads()
    assert asked == ([] if expected is None else [expected])
