import fcntl

import pytest

from detector.held_file import hold, is_in_place, take_alone


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "page"
    path.write_bytes(b"1")
    return path


def test_a_file_that_is_held_is_nobodys_alone(file):
    one, other = hold(file), hold(file)
    assert take_alone(file) is None
    one.close()
    assert take_alone(file) is None
    assert other.read() == b"1"
    other.close()
    with take_alone(file):
        assert take_alone(file) is None


def test_a_file_that_is_not_there_is_not_held(file):
    file.unlink()
    assert hold(file) is None and take_alone(file) is None
    assert not file.exists()


@pytest.mark.parametrize("get", [hold, take_alone])
@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_file_that_is_deleted_before_it_is_locked_is_not_held(file, get, is_made_again, monkeypatch):
    lock = fcntl.flock

    def delete_first(opened, how):
        file.unlink()
        if is_made_again:
            file.write_bytes(b"2")
        lock(opened, how)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    assert get(file) is None
    assert file.exists() == is_made_again


def test_without_locks_files_are_opened_and_nobodys_alone(file, monkeypatch):
    def refuse(file, how):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(file) as held:
        assert is_in_place(held, file)
    assert take_alone(file) is None
