"""`--one-of-each`, by which continuous integration shortens its second run, leaves no test out."""

from types import SimpleNamespace

import pytest

from tests.conftest import last_of_each, pytest_collection_modifyitems


def test_keeps_the_last_set_of_every_test():
    names = ["a::x[1]", "a::y", "a::x[2-[3]]", "b::x[1]", "b::C::x[1]", "a::x[4]", "b::C::z"]
    assert last_of_each(names) == {1, 3, 4, 5, 6}


@pytest.mark.parametrize("asked", [True, False])
def test_only_where_it_is_asked_for_and_says_what_it_left_out(asked):
    said, items = [], [SimpleNamespace(nodeid=name) for name in ("a::x[1]", "a::x[2]", "a::y")]
    hook = SimpleNamespace(pytest_deselected=lambda items: said.extend(item.nodeid for item in items))
    pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: asked, hook=hook), items)
    assert [item.nodeid for item in items] == (["a::x[2]", "a::y"] if asked else ["a::x[1]", "a::x[2]", "a::y"])
    assert said == (["a::x[1]"] if asked else [])
