"""YAML files: what is read, what is refused, and where each message points."""

import pytest
from ruamel.yaml import YAML

from compress_aug.errors import RecipeError
from compress_aug.reading import parse_yaml, plain_scalar, read_yaml


def test_plain_values_are_those_of_yaml_1_2():
    text = "a: 1e-3\nb: off\nc: [1, 0x10, true, null, '12', 5e-4]\n0.4: 8\nd: {e: -.5}\n"
    document = parse_yaml(text)
    assert document.data == YAML(typ="safe", pure=True).load(text)
    assert document.data["a"] == 0.001 and document.data["b"] == "off"
    kinds = {type(v) for v in document.data["c"]}
    assert kinds == {int, bool, type(None), str, float}, "plain types, not ruamel's own"


def test_every_key_has_its_line():
    document = parse_yaml("a: 1\nb:\n  - c: 2\n    d: 3\n  - e\n", name="x.yaml")
    assert document.lines[("b", 0, "d")] == 4
    assert document.where(("b", 0, "d")) == "x.yaml, line 4, b.0.d"
    assert document.where(("b", 0, "missing")) == "x.yaml, line 3, b.0.missing", "the nearest known line"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:\n\tb: 1\n", "line 2: a tab indents this line"),
        ("a: 1\nb: 2\na: 3\n", 'line 3: the key "a" stands here a second time (first in line 1)'),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "the tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !secret x\n", "the tag !secret is not allowed"),
        ("a: [1, 2\n", "this is not YAML"),
        ("a: &x [*x]\n", "too many or too deeply nested"),
        ("? [1, 2]\n: 3\n", "a key must be a word or a number"),
    ],
)
def test_what_is_refused(text, told):
    with pytest.raises(RecipeError, match="line") as caught:
        parse_yaml(text, name="x.yaml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("x.yaml, line")


def test_aliases_that_blow_up_are_stopped():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(RecipeError, match="too many"):
        parse_yaml("\n".join(lines))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(RecipeError, match="There is no file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        read_yaml(tmp_path / "binary.yaml")


def test_plain_scalar():
    assert plain_scalar("2") == 2
    assert plain_scalar("none") == "none"
    assert plain_scalar("{start: 14, end: 4}") == {"start": 14, "end": 4}
