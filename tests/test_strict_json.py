"""Numbers that JSON has no word for."""

import json
import math

from guidedq.strict_json import json_text, read_json


def test_infinite_numbers_come_back_and_every_reader_takes_the_text():
    content = {"a": math.inf, "b": [-math.inf, 1.5, 3], "c": {"d": None, "e": "Infinity"}, "f": True}
    text = json_text(content)

    def refuse(word):
        raise AssertionError(word)

    json.loads(text, parse_constant=refuse)
    assert read_json(text) == content


def test_what_is_no_number_becomes_null():
    assert read_json(json_text({"a": math.nan})) == {"a": None}
