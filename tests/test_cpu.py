import os
import subprocess
import sys

import pytest

from detector.cpu import has_onednn, leave_onednn_off_where_slow, onednn_of

SERVER = "processor\t: 0\nflags\t\t: fma avx2 avx512f avx512_vnni\nbugs\t\t: none\n"
LAPTOP = "processor\t: 0\nflags\t\t: fma avx2 avx_vnni\n"
OLDER = "processor\t: 0\nflags\t\t: fma avx avx2 avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "wanted", "expected"),
    [
        (SERVER, None, True),
        (LAPTOP, None, True),
        (OLDER, None, False),
        (ARM, None, False),
        (None, None, False),
        (SERVER, "0", False),
        (SERVER, "False", False),
        (None, "1", True),
        (None, "true", True),
    ],
)
def test_onednn_is_known_by_flags_and_the_environment(cpuinfo, wanted, expected):
    assert onednn_of(cpuinfo, wanted) is expected


def test_onednn_is_known_as_tensorflow_knows_it():
    from tensorflow.python.util import _pywrap_util_port

    assert has_onednn() is _pywrap_util_port.IsMklEnabled()


@pytest.mark.parametrize(
    ("cpuinfo", "before", "after"),
    [
        (LAPTOP, {}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        (LAPTOP, {"TF_ENABLE_ONEDNN_OPTS": "1"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
        (SERVER, {}, {}),
        (OLDER, {}, {}),
        (ARM, {}, {}),
        (None, {}, {}),
    ],
    ids=["laptop", "asked for", "server", "older server", "ARM", "unknown"],
)
def test_onednn_is_left_off_without_avx512(cpuinfo, before, after):
    environment = dict(before)
    leave_onednn_off_where_slow(cpuinfo, environment)
    assert environment == after


def test_a_tool_decides_before_tensorflow_is_imported():
    script = """
import sys
import detector.cpu
detector.cpu.cpuinfo = lambda: {cpuinfo!r}
import launch
assert "tensorflow" not in sys.modules
import os
print(os.environ.get("TF_ENABLE_ONEDNN_OPTS"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    for cpuinfo, expected in ((LAPTOP, "0"), (SERVER, "None")):
        done = subprocess.run(
            [sys.executable, "-c", script.format(cpuinfo=cpuinfo)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
