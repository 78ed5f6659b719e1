"""Targets: the shipped devices, a user's own file, and what each mistake is told as."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from compress_aug import targets
from compress_aug.errors import RecipeError
from compress_aug.folders import shipped
from compress_aug.targets import Target, load_target, target_names

FILE = """\
name: desk
description: the old machine under the desk
runtime: onnxruntime
threads: 2
round_to: 16
int8_saturates: true
proxy: true
"""


def test_the_shipped_devices():
    assert target_names() == ["generic_avx2", "host_cpu", "jetson", "raspberry_pi_4", "raspberry_pi_5"]
    assert sorted(path.stem for path in (shipped("export") / "targets").iterdir()) == target_names()
    found = {name: load_target(name) for name in target_names()}
    assert all(name == target.name for name, target in found.items())
    assert [name for name, target in found.items() if not target.proxy] == ["host_cpu"]
    assert [name for name, target in found.items() if target.form == "tensorrt"] == ["jetson"]
    assert {name for name, target in found.items() if target.int8_saturates} - {"host_cpu"} == {
        "generic_avx2"
    }
    assert (found["host_cpu"].threads, found["host_cpu"].round_to) == (1, 8)
    assert found["raspberry_pi_4"].threads == found["raspberry_pi_5"].threads == 4


def test_every_key_is_explained():
    """In the file that is there to be copied, on its own line, and in the class that checks it."""
    text = (shipped("export") / "targets" / "host_cpu.yaml").read_text()
    optional = {"itself"}
    for key, field in Target.model_fields.items():
        assert field.description, key
        assert key in optional or re.search(rf"^{key}: .*  # \w", text, re.MULTILINE), key


@pytest.mark.parametrize("name", target_names())
def test_a_target_written_out_is_the_same_target(name, tmp_path):
    target = load_target(name)
    (tmp_path / "target.yaml").write_text(target.as_yaml())
    assert load_target(tmp_path / "target.yaml") == target
    assert target.as_yaml().count("# ") >= len(target.model_dump(exclude_none=True))


def test_a_file_of_the_users_own(tmp_path):
    path = tmp_path / "desk.yaml"
    path.write_text(FILE)
    expected = Target(
        name="desk",
        description="the old machine under the desk",
        runtime="onnxruntime",
        threads=2,
        round_to=16,
        int8_saturates=True,
        proxy=True,
    )
    assert load_target(path) == load_target(str(path)) == expected


def test_a_target_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_target("host_cpu").threads = 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("host_cp", 'There is no target "host_cp": did you mean "host_cpu"?'),
        (
            "toaster",
            'There is no target "toaster": known are: generic_avx2, host_cpu, jetson, raspberry_pi_4, raspberry_pi_5',
        ),
        ("nowhere/pi.yaml", "There is no file nowhere/pi.yaml that describes a target."),
        ("pi.yaml", "There is no file pi.yaml that describes a target."),
    ],
)
def test_an_unknown_target_is_told(name, sentence):
    with pytest.raises(RecipeError) as caught:
        load_target(name)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("threads: 2", "threads: 0"), "line 4, threads: expected a number of at least 1, found 0"),
        (("threads: 2", "thread: 2"), 'line 4, thread: unknown key "thread": did you mean "threads"?'),
        (("runtime: onnxruntime", "runtime: tvm"), "line 3, runtime: expected"),
        (("proxy: true", "proxy: true\nform: trt"), "line 8, form: expected"),
        (("int8_saturates: true", "int8_saturates: often"), "line 6, int8_saturates: expected true or false"),
        (("round_to: 16", "round_to: 16:"), "line 5: this is not YAML"),
        ((FILE, "- 1\n"), "expected keys and values that describe a target"),
        ((FILE, ""), "expected keys and values that describe a target"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path, change, sentence):
    path = tmp_path / "desk.yaml"
    path.write_text(FILE.replace(*change))
    with pytest.raises(RecipeError) as caught:
        load_target(path)
    assert sentence in str(caught.value) and "desk.yaml" in str(caught.value)


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "desk.yaml"
    path.write_text(FILE.replace("threads: 2", "threads: many").replace("proxy: true\n", ""))
    with pytest.raises(RecipeError) as caught:
        load_target(path)
    assert len(caught.value.problems) == 2


def test_on_the_device_itself_nothing_is_a_proxy(monkeypatch):
    assert load_target("raspberry_pi_4").proxy
    monkeypatch.setattr(targets, "_firmware_name", lambda: "Raspberry Pi 4 Model B Rev 1.4")
    assert not load_target("raspberry_pi_4").proxy
    monkeypatch.setattr(targets, "_firmware_name", lambda: "Raspberry Pi 3 Model B")
    assert load_target("raspberry_pi_4").proxy


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "flags : sse4_1 avx2 avx512f", True),
        ("x86_64", "flags : avx2 avx512_vnni", False),
        ("AMD64", "flags : avx2 avx_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "Features : asimd", False),
        ("arm64", None, False),
    ],
)
def test_auto_reads_saturation_off_the_processor(monkeypatch, machine, flags, saturates):
    def read_text(path, **_):
        if flags is None:
            raise FileNotFoundError(path)
        return flags

    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    document = targets.read_yaml(shipped("export") / "targets" / "host_cpu.yaml")
    assert document.data["int8_saturates"] == "auto"
    monkeypatch.setattr(Path, "read_text", read_text)
    assert Target.model_validate(document.data).int8_saturates == saturates


def test_a_question_ends_by_its_own_mark(tmp_path):
    text = re.sub(
        r"^runtime: .*$", "runtime: onnxruntim", load_target("host_cpu").as_yaml(), flags=re.MULTILINE
    )
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r'did you mean "onnxruntime"\?$'):
        load_target(tmp_path / "mine.yaml")
