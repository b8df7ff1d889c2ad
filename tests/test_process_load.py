"""What a process and its children cost."""

import sys

from sam3dnet.comparison.process_load import process_tree, run_measured

CHILD = """
import subprocess, sys, time
block = bytearray(60 << 20)
block[::4096] = b"x" * len(block[::4096])
child = subprocess.Popen([sys.executable, "-c", "b = bytearray(90 << 20); b[::4096] = b'x' * len(b[::4096]);"
                          "import time; time.sleep(1.5)"])
open(sys.argv[1], "w").close()
child.wait()
sum(range(3_000_000))
"""


def test_cost_of_a_process_and_its_children(tmp_path):
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", CHILD, str(mark)]
    load = run_measured(command, tmp_path / "log", {}, mark, interval_seconds=0.05)
    assert load.returncode == 0
    assert load.peak_mib >= 140
    assert load.cpu_seconds > 0
    assert load.until_mark is not None
    assert load.until_mark.wall_seconds < load.wall_seconds
    assert load.as_dict()["until_mark"]["peak_mib"] == round(load.until_mark.peak_mib, 2)


def test_a_process_that_is_gone_has_no_tree():
    assert process_tree(2**22 + 1) == []
