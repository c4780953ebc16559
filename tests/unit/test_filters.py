"""Warning filters arrive on workers whatever they are made of."""

import pickle
import re
import sys
import types
import warnings

import pytest

from jobfleet._filters import DELIVER_ALL, decode_filters, encode_filters


def test_the_filters_in_force_arrive():
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("error", "(?s)a.b", DeprecationWarning, "mod", 3)
        warnings.simplefilter("ignore", ResourceWarning)
        encoded = encode_filters()
    assert pickle.loads(pickle.dumps(encoded)) == encoded
    hash(encoded)
    ignored, error, last = decode_filters(encoded)
    assert ignored == ("ignore", None, ResourceWarning, None, 0)
    assert error == (
        "error",
        re.compile("(?s)a.b", re.I),
        DeprecationWarning,
        re.compile("mod"),
        3,
    )
    assert last == DELIVER_ALL


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("default", "text", Warning, "__main__", 0), ("always", "text", Warning, "__main__", 0)),
        (
            ("once", None, (UserWarning, FutureWarning), None, 0),
            ("always", None, (UserWarning, FutureWarning), None, 0),
        ),
        (("all", None, UserWarning, None, 0), ("always", None, UserWarning, None, 0)),
        (("ignore", object(), UserWarning, None, 0), None),
        (("ignore", None, "no class", None, 0), None),
        (("ignore", None, type("Local", (UserWarning,), {}), None, 0), None),
        (("ignore", None, int, None, 0), None),
        (("too", "short"), None),
        (None, None),
    ],
)
def test_odd_filters_are_carried_or_left_out(entry, expected):
    decoded = decode_filters(encode_filters([entry]))
    assert decoded == ((expected, DELIVER_ALL) if expected else (DELIVER_ALL,))


def test_a_pattern_of_another_python_is_left_out():
    assert decode_filters((("ignore", ("(", 0), (("builtins", "Warning"),), None, 0),)) == (DELIVER_ALL,)


def test_filters_that_were_decoded_stay_the_same():
    once = decode_filters(encode_filters([("default", None, UserWarning, None, 0)]))
    assert decode_filters(encode_filters(list(once))) == once


def test_a_category_that_is_imported_later_is_found_then(monkeypatch):
    encoded = (("ignore", None, (("late_module", "Late"),), None, 0),)
    assert decode_filters(encoded) == (DELIVER_ALL,)
    module = types.ModuleType("late_module")
    module.Late = type("Late", (UserWarning,), {})
    monkeypatch.setitem(sys.modules, "late_module", module)
    assert decode_filters(encoded)[0][2] is module.Late


def test_only_an_error_imports_its_category(tmp_path, monkeypatch):
    (tmp_path / "category_to_load.py").write_text("class C(Warning): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = (("category_to_load", "C"),)
    assert decode_filters((("ignore", None, name, None, 0),)) == (DELIVER_ALL,)
    assert "category_to_load" not in sys.modules
    try:
        assert decode_filters((("error", None, name, None, 0),))[0][0] == "error"
    finally:
        sys.modules.pop("category_to_load", None)
