import subprocess
import sys

import pytest

from detector import optional_imports

# Imports a package if it is there, as TensorFlow does; `pandas` stands for what is left out.
PACKAGE = """
try:
    import extra
except ImportError:
    extra = None
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    (tmp_path / "looking.py").write_text(PACKAGE)
    (tmp_path / "extra.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("looking", "extra"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_package_is_left_out_while_the_other_is_imported_and_found_after(packages):
    optional_imports.leave_out("looking", ["extra"])
    import looking

    assert looking.extra is None
    import extra

    assert extra.__file__


def test_a_package_that_is_imported_already_is_not_taken_away(packages):
    optional_imports.leave_out("looking", ["extra"])
    import extra
    import looking

    assert looking.extra is extra


def test_the_tools_import_tensorflow_without_what_they_do_not_use():
    shown = (
        "import sys, launch, tensorflow, tf_keras; "
        "print([name for name in ('pandas', 'googleapiclient', 'scipy') if name in sys.modules]); "
        "import pandas, scipy.special; print(pandas.DataFrame([1]).sum()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd="tools"
    )
    assert done.stdout.split("\n")[:2] == ["[]", "1"]
