"""What leaves in the wheel and the sdist: the package with recipes/, export/ and the compiled kernels, and no more."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "compress_aug/native/kernels.so"

needs_compiler = pytest.mark.skipif(
    not os.environ.get("CC") and not any(shutil.which(name) for name in ("cc", "gcc", "clang")),
    reason="there is no C compiler (cc, gcc or clang)",
)


def tracked(*folders):
    """The files that git holds there; force-include knows no .gitignore, so this is what the wheel is held against."""
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files comes from git, and this is no clone")
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def build(source, folder, *options, **environment):
    """Run `python -m build`, in an environment with these changes; returns what it said."""
    settings = {
        name: value for name, value in os.environ.items() if name != "COMPRESS_AUG_NATIVE"
    } | environment
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        *options,
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def contents(wheel):
    """The files in a wheel but for what describes it, and whether it is for any platform."""
    with zipfile.ZipFile(wheel) as archive:
        (description,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        pure = "Root-Is-Purelib: true" in archive.read(description).decode()
        assert pure == wheel.name.endswith("-py3-none-any.whl")
        return {name for name in archive.namelist() if ".dist-info/" not in name}, pure


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    """The sdist, as somebody has it who builds from it: no clone round it, and nothing that was built before."""
    (sdist,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def test_the_wheel_holds_the_package_and_its_folders_alone(built):
    (wheel,) = built.glob("*.whl")
    names, pure = contents(wheel)
    expected = tracked("compress_aug") | {f"compress_aug/{name}" for name in tracked("recipes", "export")}
    assert names == expected | (set() if pure else {LIBRARY})
    assert {name.split("/")[0] for name in names} == {"compress_aug"}


@needs_compiler
def test_the_wheel_holds_the_kernels_and_is_for_this_platform(built):
    (wheel,) = built.glob("*.whl")
    names, pure = contents(wheel)
    assert LIBRARY in names
    assert not pure
    assert wheel.name.endswith(f"_{platform.machine()}.whl")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"COMPRESS_AUG_NATIVE": "0"}, "COMPRESS_AUG_NATIVE is 0"),
        ({"CC": "/nowhere/cc"}, "/nowhere/cc cannot be run"),
        ({"CC": f"{sys.executable} -c 'raise SystemExit(\"error: broken\")'"}, "error: broken"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_one_line_says_so(setting, reason, unpacked, tmp_path):
    said = build(unpacked, tmp_path, "--wheel", **setting)
    (wheel,) = tmp_path.glob("*.whl")
    names, pure = contents(wheel)
    assert pure
    assert not any(name.endswith(".so") for name in names)
    assert [reason in line for line in said.splitlines() if "no compiled kernels" in line] == [True]


@needs_compiler
def test_a_level_that_the_compiler_does_not_know_is_left_out(unpacked, tmp_path):
    real = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    old = tmp_path / "old-compiler"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavx512f*) echo "error: unknown option" >&2; exit 1;; esac\n{real} "$@"'
    )
    old.chmod(0o755)
    build(unpacked, tmp_path, "--wheel", CC=shlex.quote(str(old)))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LIBRARY, tmp_path)
    code = "import ctypes, sys; print(hasattr(ctypes.CDLL(sys.argv[1]), 'augment_avx512'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / LIBRARY)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_the_sdist_holds_what_a_wheel_and_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("compress_aug", "recipes", "export", "tests") <= names
    assert {"pyproject.toml", "README.md", "constraints.txt", "hatch_build.py"} <= names
    assert {"compress_aug/native/augment.c", "compress_aug/native/levels.c"} <= names
    assert not any(name.endswith(".so") for name in names)


def test_from_a_wheel_the_folders_are_found(built, tmp_path):
    """In an environment of its own, beside the packages that are installed here, with the clone out of sight."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import compress_aug, sys; from compress_aug.folders import shipped\n"
        "from compress_aug.recipe import recipe_names\n"
        "from compress_aug.study import study_names\n"
        "from importlib.machinery import PathFinder\n"
        "beside = [PathFinder.find_spec(name, [sys.path[1]]) for name in ('recipes', 'export')]\n"
        "print(compress_aug.__file__, shipped('export') / 'bench.py', len(recipe_names() + study_names()), *beside)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    module, bench, recipes, *beside = done.stdout.split()
    assert beside == ["None", "None"], "no module of ours is called recipes or export"
    assert module.startswith(str(tmp_path / "site")) and bench.startswith(str(tmp_path / "site"))
    assert int(recipes) == len(tracked("recipes"))
