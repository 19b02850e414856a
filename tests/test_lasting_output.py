import os
import sys
from contextlib import contextmanager

import pytest
from rich.console import Console

from detector.lasting_output import lasting_output


@contextmanager
def unread_output(monkeypatch):
    """Have standard output be a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def test_without_care_a_reader_that_has_gone_ends_the_work(monkeypatch):
    with unread_output(monkeypatch):
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)
        with pytest.raises(SystemExit):
            Console().print("a line")


def test_what_nobody_reads_is_dropped(monkeypatch):
    with unread_output(monkeypatch):
        with lasting_output():
            print("a line")  # stays in the buffer until the block ends
        print("after it", flush=True)  # leads nowhere now, also as the process ends
    with unread_output(monkeypatch), lasting_output():
        Console().print("a line")
        print("a line", flush=True)
    with unread_output(monkeypatch), lasting_output():
        for _ in range(3):
            print("more than the buffer holds" * 1000)


def test_what_is_read_arrives(capsys):
    with lasting_output():
        print("out")
        print("err", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("out\n", "err\n")


def test_other_errors_stay_errors(tmp_path, monkeypatch):
    with open(tmp_path / "ascii", "w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with lasting_output(), pytest.raises(UnicodeEncodeError):
            print("é")
