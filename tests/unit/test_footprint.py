"""Bytes, memory and operations against known amounts."""

import subprocess
import sys

import numpy as np
import pytest

from tasks.evaluation.footprint import flops, folder_bytes, linear_flops, peak_memory_bytes


def test_folder_bytes_counts_what_is_named(tmp_path):
    for name, size in (("a", 3), ("b", 40), ("c", 500)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert folder_bytes(tmp_path, ["a", "b"]) == 43
    with pytest.raises(FileNotFoundError):
        folder_bytes(tmp_path, ["a", "missing"])


def test_peak_memory_keeps_the_peak():
    before = peak_memory_bytes()
    ballast = np.ones(25_000_000)
    assert ballast[-1] == 1
    peak = peak_memory_bytes()
    del ballast
    assert peak > 2e8
    slack = 2**20  # the kernel adds up its per-thread counters now and then
    assert peak_memory_bytes() >= peak - slack
    assert peak >= before - slack


def test_peak_memory_of_a_child_does_not_start_at_its_parents():
    ballast = np.ones(40_000_000)
    code = "from tasks.evaluation.footprint import peak_memory_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ballast[0] == 1
    assert 5e6 < int(done.stdout) < 1e8


def test_flops_of_a_matrix_product():
    import torch

    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_flops_of_a_small_encoder_layer():
    import torch

    layer = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
    assert flops(lambda: layer(torch.ones(2, 16))) == 2 * 2 * (16 * 64 + 64 * 16)


def test_linear_flops():
    assert linear_flops(10.5, 77) == 1617
