import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from detector import owned_folder as module
from detector.owned_folder import bytes_in, delete_orphans, owned_before, owned_folder

OWNER = """
import sys
from pathlib import Path
from detector.owned_folder import owned_folder
with owned_folder(Path(sys.argv[1]), ".partial-") as folder:
    (folder / "half").write_bytes(bytes(1000))
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start_owner(tmp_path):
    """Return a function that starts a process with a folder of its own, and the folder's name."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_folder_of_a_killed_process_goes_and_those_of_living_ones_stay(start_owner, tmp_path):
    (killed, _), (_, living) = start_owner(), start_owner()
    (tmp_path / "finished").mkdir()
    with owned_folder(tmp_path, ".partial-") as own:
        assert delete_orphans(tmp_path, ".partial-") == 0 and len(names(tmp_path)) == 4
        killed.kill()
        killed.wait()
        assert delete_orphans(tmp_path, ".partial-") == 1000
        assert names(tmp_path) == {"finished", living, own.name}
    assert names(tmp_path) == {"finished", living}


def test_a_process_that_ends_leaves_nothing(start_owner, tmp_path):
    process, name = start_owner()
    assert names(tmp_path) == {name}
    process.communicate("")
    assert not names(tmp_path)


def test_a_folder_that_was_never_locked_is_an_orphan(tmp_path):
    (tmp_path / ".partial-1" / "below").mkdir(parents=True)
    (tmp_path / ".partial-1" / "below" / "half").write_bytes(bytes(10))
    assert delete_orphans(tmp_path, ".partial-") == 10
    assert not names(tmp_path)


@pytest.mark.parametrize("moment", ["made", "opened"])
def test_a_folder_that_is_taken_for_an_orphan_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch, moment
):
    made = []

    def make(**where):
        folder = Path(tempfile.mkdtemp(**where))
        made.append(folder)
        if moment == "made" and len(made) == 1:
            shutil.rmtree(folder)
        return str(folder)

    def lock(file, how):
        if moment == "opened" and len(made) == 1:
            shutil.rmtree(made[0])
        fcntl.flock(file, how)

    monkeypatch.setattr(module, "tempfile", type("Tempfile", (), {"mkdtemp": staticmethod(make)}))
    monkeypatch.setattr(
        module, "fcntl", type("Fcntl", (), {"flock": staticmethod(lock), "LOCK_EX": fcntl.LOCK_EX})
    )
    with owned_folder(tmp_path, ".partial-") as folder:
        assert made[1:] == [folder] and folder.is_dir()


def test_without_locks_nothing_is_taken_for_an_orphan(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owned_folder(tmp_path, ".partial-") as folder:
        assert delete_orphans(tmp_path, ".partial-") == 0 and folder.is_dir()


def test_who_was_there_before(tmp_path):
    made = [owned_folder(tmp_path, ".partial-") for _ in range(4)]
    with made[0] as first, made[1] as one, made[2] as other, made[3] as last:
        (tmp_path / ".partial-locked-by-nobody-yet").mkdir()
        for folder, second in ((first, 1), (one, 2), (other, 2), (last, 3)):
            os.utime(folder / "owner.lock", (second, second))
        (first / "new").touch()
        assert owned_before(first, ".partial-") == []
        assert set(owned_before(last, ".partial-")) == {first, one, other}
        # One of two that were made at the same time came before the other.
        before = {folder: set(owned_before(folder, ".partial-")) for folder in (one, other)}
        earlier, later = sorted(before, key=lambda folder: len(before[folder]))
        assert before == {earlier: {first}, later: {first, earlier}}


def test_bytes_are_those_of_all_files_below(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one").write_bytes(bytes(10))
    (tmp_path / "two").write_bytes(bytes(5))
    (tmp_path / "three").symlink_to("deleted meanwhile")
    assert bytes_in(tmp_path) == 15
