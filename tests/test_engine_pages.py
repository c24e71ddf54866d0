"""Which pages are lent, kept and given away again."""

import pytest

from minimind_sft.inference.cache import Pages, Span, page_keys


def place(span: Span | None) -> tuple[int, int] | None:
    return None if span is None else (span.first, span.count)


def test_pages_are_neighbours_and_come_back():
    pages = Pages(4)
    first, second = pages.lend(2), pages.lend(1)
    assert [place(first), place(second), place(pages.lend(2))] == [(0, 2), (2, 1), None]
    assert pages.lent == 3
    pages.give_back(first)
    assert place(pages.lend(2)) == (0, 2)


def test_what_a_page_holds_is_found_until_the_page_is_lent_again():
    pages = Pages(2)
    span = pages.lend(1)
    pages.keep(span.first, b"a")
    assert pages.find(b"a") == 0
    pages.give_back(span)
    assert pages.find(b"a") == 0
    assert place(pages.lend(1)) == (1, 1), "a free page comes before one that holds something"
    assert place(pages.lend(1)) == (0, 1)
    assert pages.find(b"a") is None


def test_the_first_of_two_pages_with_the_same_contents_stays():
    pages = Pages(2)
    span = pages.lend(2)
    pages.keep(1, b"a")
    pages.keep(0, b"a")
    assert pages.find(b"a") == 1
    pages.give_back(span)
    assert place(pages.lend(1)) == (0, 1)


@pytest.mark.parametrize(("used_last", "expected"), [(0, 2), (4, 0), (2, 4)])
def test_the_least_recently_used_pages_go_first(used_last: int, expected: int):
    pages = Pages(6)
    spans = [pages.lend(2) for _ in range(3)]
    for page in range(6):
        pages.keep(page, bytes([page]))
    for span in spans:
        pages.give_back(span)
    for page in [page for page in (0, 2, 4) if page not in (expected, used_last)] + [used_last]:
        pages.find(bytes([page]))
        pages.find(bytes([page + 1]))
    assert place(pages.lend(2)) == (expected, 2)
    assert pages.find(bytes([expected])) is None and pages.find(bytes([used_last])) == used_last


def test_compacting_makes_room_and_keeps_what_was_used_last():
    pages = Pages(8)
    spans = [pages.lend(2) for _ in range(4)]
    for page in range(8):
        pages.keep(page, bytes([page]))
    pages.give_back(spans[0])
    pages.give_back(spans[2])
    pages.find(b"\x01")
    assert pages.lend(3) is None
    order = pages.compact()
    assert order == [2, 3, 6, 7, 1, 5, 4, 0]
    assert [place(spans[1]), place(spans[3])] == [(0, 2), (2, 2)]
    assert [pages.find(bytes([page])) for page in range(8)] == [order.index(page) for page in range(8)]
    assert place(pages.lend(3)) == (4, 3)


def test_a_span_grows_into_pages_that_are_not_lent():
    pages = Pages(5)
    first, second, third = pages.lend(1), pages.lend(1), pages.lend(2)
    pages.keep(second.first, b"b")
    assert not pages.extend(first, 1) and not pages.extend(third, 2)
    pages.give_back(second)
    assert pages.extend(first, 1) and pages.extend(third, 1)
    assert [place(first), place(third), pages.lent, pages.find(b"b")] == [(0, 2), (2, 3), 5, None]
    pages.give_back(third)
    assert place(pages.lend(3)) == (2, 3)


def test_a_span_that_comes_last_has_all_other_pages_behind_it():
    pages = Pages(6)
    first, second, third = pages.lend(2), pages.lend(1), pages.lend(1)
    pages.give_back(second)
    assert pages.compact(last=first) == [3, 0, 1, 2, 4, 5]
    assert [place(first), place(third)] == [(1, 2), (0, 1)]
    assert pages.extend(first, 3)


def test_keys_stand_for_a_page_and_all_before_it():
    keys = list(page_keys([1, 2, 3, 4, 5], 2))
    assert len(keys) == len(set(keys)) == 2
    assert list(page_keys([1, 2, 3, 4], 2)) == keys
    other = list(page_keys([0, 2, 3, 4], 2))
    assert not set(other) & set(keys), "the second page has the same tokens, but another beginning"
    assert list(page_keys([1], 2)) == []
