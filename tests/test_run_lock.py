import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from detector.run_lock import RunBusyError, run_lock


def test_one_process_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "one"
    with run_lock(folder):
        with (
            pytest.raises(RunBusyError, match=r"another process trains in .*one: let it end"),
            run_lock(folder),
        ):
            pass
        with run_lock(tmp_path / "runs" / "two"):
            pass
    with run_lock(folder):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock(tmp_path / "run"):
        pass
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/run cannot be locked ({os.strerror(number)}): see to it that no other process "
        "trains in it\n"
    )


def test_other_errors_of_locking_are_errors(tmp_path, monkeypatch):
    def fail(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), run_lock(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from detector.run_lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunBusyError), run_lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with run_lock(tmp_path):
        pass
