"""Which caches make room and which stay, with files that have a size and no contents."""

import errno
import fcntl
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from detector import cache_folder
from detector.cache_folder import PAGE, CacheFolder, CacheTooLargeError
from detector.held_file import take_alone

GIGABYTE = 10**9


@pytest.fixture
def caches(tmp_path):
    """A folder of caches with a budget of 1 GB."""
    return CacheFolder(tmp_path / "features", GIGABYTE)


def names(caches):
    return sorted(path.name for path in caches.path.iterdir())


def write_values(folder, gigabytes):
    with open(folder / "values.bin", "wb") as file:
        file.truncate(int(gigabytes * GIGABYTE))


def make(caches, name, gigabytes, last_used=None):
    """Make a cache of that size and return its page."""

    def write(folder, make_room):
        write_values(folder, gigabytes)
        make_room(int(gigabytes * GIGABYTE), int(gigabytes * GIGABYTE))
        (folder / PAGE).touch()

    page = caches.make(name, write)
    if last_used is not None:
        os.utime(caches.path / name / PAGE, (last_used, last_used))
    return page


def test_those_longest_unused_make_room(caches):
    for name, last_used in (("a", 3), ("b", 1), ("c", 2)):
        make(caches, name, 0.3, last_used).close()
    make(caches, "d", 0.2).close()
    assert names(caches) == ["a", "c", "d"]
    caches.find("c").close()
    make(caches, "e", 0.3).close()
    assert names(caches) == ["c", "d", "e"]


def test_what_is_in_use_stays_and_a_younger_one_goes_for_it(caches):
    make(caches, "a", 0.4, 1).close()
    make(caches, "b", 0.4, 2).close()
    with caches.find("a"):
        os.utime(caches.path / "a" / PAGE, (1, 1))
        make(caches, "c", 0.4).close()
    assert names(caches) == ["a", "c"]
    make(caches, "d", 0.4).close()
    assert names(caches) == ["c", "d"]


def test_where_all_that_may_go_would_not_do_none_goes(caches):
    used = make(caches, "used", 0.5, 1)
    make(caches, "idle", 0.3, 2).close()
    with pytest.raises(CacheTooLargeError) as error:
        make(caches, "new", 0.6)
    assert str(error.value) == (
        "they take 0.60 GB, and the limit is 1.00 GB, of which 0.50 GB are in use: raise "
        "train.cache_limit_gb, use fewer views, store float16, or freeze further"
    )
    assert names(caches) == ["idle", "used"]
    used.close()
    make(caches, "new", 0.6).close()
    assert names(caches) == ["idle", "new"]


def test_one_that_somebody_begins_to_use_meanwhile_stays(caches, monkeypatch):
    make(caches, "idle", 0.5).close()
    is_idle, used = caches._is_idle, []

    def used_after_that(name):
        answer = is_idle(name)
        used.append(caches.find(name))
        return answer

    monkeypatch.setattr(caches, "_is_idle", used_after_that)
    with pytest.raises(CacheTooLargeError, match="in use"):
        make(caches, "new", 0.6)
    assert len(used) == 1 and names(caches) == ["idle"]


def test_a_new_one_is_in_use_before_others_see_it(caches, monkeypatch):
    rename, seen = Path.rename, []

    def look_at_once(path, target):
        rename(path, target)
        seen.append(take_alone(target / PAGE))

    monkeypatch.setattr(Path, "rename", look_at_once)
    with make(caches, "a", 0.1):
        assert seen == [None] and take_alone(caches.path / "a" / PAGE) is None


def test_one_that_another_process_made_meanwhile_is_taken(caches):
    def write(folder, make_room):
        (folder / PAGE).write_text("mine")
        make(caches, "a", 0.1).close()

    with caches.make("a", write) as page:
        assert page.read() == b"" and take_alone(caches.path / "a" / PAGE) is None
    assert names(caches) == ["a"]


def test_what_others_began_earlier_counts_with_what_it_has(caches):
    other = CacheFolder(caches.path, GIGABYTE)

    def write_first(first, make_room_for_first):
        os.utime(first.parent / "owner.lock", (1, 1))
        write_values(first, 0.3)

        def write_second(second, make_room_for_second):
            write_values(second, 0.5)
            make_room_for_first(int(0.9 * GIGABYTE), int(0.3 * GIGABYTE))
            make_room_for_second(int(0.6 * GIGABYTE), int(0.5 * GIGABYTE))
            make_room_for_second(int(0.8 * GIGABYTE), int(0.5 * GIGABYTE))

        with pytest.raises(CacheTooLargeError, match=r"they take 0\.80 GB.* of which 0\.30 GB are in use"):
            other.make("second", write_second)
        (first / PAGE).touch()

    caches.make("first", write_first).close()
    assert names(caches) == ["first"]


def test_what_is_deleted_leaves_its_place_whole(caches, monkeypatch):
    make(caches, "old", 0.5).close()
    delete, left = shutil.rmtree, []

    def look_first(folder, **how):
        left.append((caches.path / "old").exists())
        assert (folder / "values.bin").is_file() or folder.name != "old"
        delete(folder, **how)

    monkeypatch.setattr(cache_folder.shutil, "rmtree", look_first)
    make(caches, "new", 0.6).close()
    assert left and not any(left) and names(caches) == ["new"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_too_small_a_cache(caches, number):
    def write(folder, make_room):
        write_values(folder, 0.1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(CacheTooLargeError, match=r"is full: name another train.cache_folder"):
        caches.make("a", write)
    assert names(caches) == []


def test_another_error_is_told_as_it_is(caches):
    def write(folder, make_room):
        raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="the disk is broken"):
        caches.make("a", write)
    assert names(caches) == []


def test_a_disk_that_will_not_do_is_told(caches, monkeypatch):
    usage = namedtuple("usage", "free")(int(0.2 * GIGABYTE))
    monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda path: usage)

    def write(folder, make_room):
        make_room(int(0.5 * GIGABYTE), int(0.3 * GIGABYTE))
        make_room(int(0.5 * GIGABYTE), int(0.2 * GIGABYTE))

    told = r"they take 0\.50 GB, but the disk has 0\.40 GB left: name another"
    with pytest.raises(CacheTooLargeError, match=told):
        caches.make("a", write)


def test_without_locks_none_goes(caches, monkeypatch):
    def refuse(file, how):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    make(caches, "a", 0.5).close()
    caches.find("a").close()
    with pytest.raises(CacheTooLargeError, match="in use"):
        make(caches, "b", 0.6)
    assert names(caches) == ["a"]
