"""`--one-of-each`, by which continuous integration shortens its second run, leaves no test out."""

import pytest

from tests.conftest import last_of_each, pytest_collection_modifyitems


def test_keeps_the_last_set_of_every_test():
    names = ["a::x[1]", "a::y", "a::x[2-[3]]", "b::x[1]", "b::C::x[1]", "a::x[4]", "b::C::z"]
    assert last_of_each(names) == {1, 3, 4, 5, 6}


@pytest.mark.parametrize("asked", [True, False])
def test_only_where_it_is_asked_for_and_says_what_it_left_out(asked, request, monkeypatch):
    left_out, items = [], request.session.items[:]
    names = {item.nodeid.split("[")[0] for item in items}
    monkeypatch.setattr(request.config.option, "one_of_each", asked)
    monkeypatch.setattr(request.config.hook, "pytest_deselected", lambda items: left_out.extend(items), raising=False)
    pytest_collection_modifyitems(request.config, items)
    assert {item.nodeid.split("[")[0] for item in items} == names
    assert len(items) == (len(names) if asked else len(request.session.items))
    assert len(items) + len(left_out) == len(request.session.items)
