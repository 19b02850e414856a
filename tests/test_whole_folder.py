import errno
import os

import pytest

from detector.whole_folder import clear_up, written_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def place(tmp_path):
    """A folder that was written before, and what a killed process left beside it."""
    place = tmp_path / "page"
    for folder, text in ((place, "old"), (tmp_path / ".page.partial", "half")):
        folder.mkdir()
        (folder / "text").write_text(text)
    return place


def test_what_was_there_makes_way_and_what_a_killed_process_left_goes(place):
    with written_whole(place, "the page") as folder:
        assert names(folder) == []
        (folder / "below").mkdir()
        (folder / "below" / "text").write_text("new")
        assert (place / "text").read_text() == "old"
    assert names(place) == ["below"] and names(place.parent) == ["page"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("mine"), OSError(errno.ENOSPC, "full")])
def test_whatever_fails_leaves_what_was_there_and_nothing_else(place, failure):
    with pytest.raises(type(failure)) as caught, written_whole(place, "the page") as folder:
        (folder / "text").write_text("new")
        raise failure
    assert caught.value is failure or str(caught.value) == (
        f"the page could not be written to {place}: full; make room for it or name another place"
    )
    assert names(place.parent) == ["page"] and (place / "text").read_text() == "old"


def test_a_folder_that_cannot_be_moved_to_its_place_brings_the_old_one_back(place, monkeypatch):
    replace = os.replace

    def fails_once(source, target):
        if source.name == ".page.partial":
            raise OSError(errno.EIO, "worn out")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with (
        pytest.raises(OSError, match=r"could not be written to .*page: worn out"),
        written_whole(place, "the page") as folder,
    ):
        (folder / "text").write_text("new")
    assert names(place.parent) == ["page"] and (place / "text").read_text() == "old"


def test_what_killed_processes_left_is_cleared_up_and_nothing_else(tmp_path):
    for name in (
        ".step-2.partial",
        ".step-2.old",
        ".step-3.old",
        ".step-3.partial",
        ".other.partial",
        "step-2",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    clear_up(tmp_path, "step-*")
    assert names(tmp_path) == [".other.partial", "step-2", "step-3"]
    # It was killed after the old one had made way, and before the new one took its place.
    assert (tmp_path / "step-3" / "text").read_text() == ".step-3.old"
    assert (tmp_path / "step-2" / "text").read_text() == "step-2"
