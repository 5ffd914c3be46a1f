"""What travels between processes: total to read, bounded to write."""

import json
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_django_orm.coherence.hints import EVERYTHING, MOST_KEYS_OF_HINT, READ_LIMIT, Hint, decode, encode
from tests.project.board.models import Everything, Topic

KEYS = st.integers() | st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("vmkx"), inner),
)


@given(st.text(min_size=1, max_size=50), st.lists(KEYS | st.tuples(KEYS, KEYS)))
def test_what_is_written_is_read(label: str, keys: list[Any]) -> None:
    """Any label and any keys, composite ones too, come back as they were."""
    messages = encode(Hint(label, tuple(keys)))
    assert sum((decode(message).keys or () for message in messages), ()) == tuple(keys)
    assert {decode(message).label for message in messages} <= {label}


@given(st.lists(st.text(max_size=200), min_size=1, max_size=400))
def test_no_message_is_longer_than_the_limit(keys: list[str]) -> None:
    """Keys are split over messages, each of which NOTIFY takes."""
    assert all(len(message) <= 7900 for message in encode(Hint("bbs.Topic", tuple(keys))))


@pytest.mark.parametrize("keys", [None, (1,), ("k" * 9000,)])
@pytest.mark.parametrize("label", ["l" * 8000, "\u20ac" * 2000, "\ud800\x00" * 2000])
def test_a_label_that_no_message_has_room_for(label: str, keys: Any) -> None:
    """It is said that anything may have changed, and no message is too long for NOTIFY."""
    assert [decode(message) for message in encode(Hint(label, keys))] == [EVERYTHING]


def test_a_hint_for_all_rows() -> None:
    """It has no keys, and is not one for no rows."""
    assert [decode(message) for message in encode(Hint("bbs.Topic"))] == [Hint("bbs.Topic")]
    assert encode(Hint("bbs.Topic", ())) == []


@pytest.mark.parametrize(
    "keys", [range(MOST_KEYS_OF_HINT + 1), [None], [True], [b"x"], [object()], ["x" * 8000], [1, (2, None)]]
)
def test_keys_that_cannot_be_said_become_all(keys: Any) -> None:
    """Too many, too long, or of a type without a form in JSON: one message for all rows."""
    assert [decode(message) for message in encode(Hint("bbs.Topic", tuple(keys)))] == [Hint("bbs.Topic")]


def test_keys_of_many_types_come_back_through_their_field() -> None:
    """A field's `to_python` makes a key of its string."""
    key, moment = uuid.uuid4(), datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    fields = {field.name: field for field in Everything._meta.concrete_fields}
    for name, value in [
        ("key", key),
        ("moment", moment),
        ("date", date(2026, 1, 2)),
        ("decimal", Decimal("1.500000")),
        ("floating", 0.1),
        ("big", 2**62),
    ]:
        (message,) = encode(Hint("a.B", (value,)))
        (read,) = decode(message).keys or ()
        assert fields[name].to_python(read) == value


@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_anything_can_be_read(payload: bytes | str) -> None:
    """Whatever comes is a hint, and what is none means everything."""
    assert isinstance(decode(payload), Hint)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "hello",
        "null",
        "[]",
        '{"m":"bbs.Topic"}',
        '{"v":0,"m":"bbs.Topic"}',
        '{"v":2,"m":"bbs.Topic","k":[1]}',
        '{"v":1}',
        '{"v":1,"m":7}',
        "[" * 100_000,
        '{"v":1,"m":"bbs.Topic","k":[' + "9" * 5000 + "]}",
        '{"v":1,"m":"bbs.Topic","k":["' + "x" * READ_LIMIT + '"]}',
        b"\xff\xfe",
    ],
)
def test_what_cannot_be_understood_means_everything(payload: bytes | str) -> None:
    """Malformed, huge, or of another version of this package: everything may have changed."""
    assert decode(payload) == EVERYTHING


DEEP = "[" * 600 + "]" * 600  # which every version of Python parses


@pytest.mark.parametrize("keys", ["1", "{}", "[null]", "[true]", "[{}]", "null", '"12"', "[[[1]]]", DEEP])
def test_unreadable_keys_mean_all_rows_of_the_model(keys: str) -> None:
    """The label still says which model."""
    assert decode(f'{{"v":1,"m":"{Topic._meta.label}","k":{keys}}}') == Hint("board.Topic")
