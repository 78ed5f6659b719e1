"""What leaves in the wheel and the sdist: the package with recipes/ and export/ inside, and nothing beside it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked(*folders):
    """The files that git holds there; force-include knows no .gitignore, so this is what the wheel is held against."""
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files comes from git, and this is no clone")
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_package_and_its_folders_alone(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = tracked("compress_aug") | {f"compress_aug/{name}" for name in tracked("recipes", "export")}
    assert names == expected
    assert {name.split("/")[0] for name in names} == {"compress_aug"}


def test_the_sdist_holds_what_a_wheel_and_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("compress_aug", "recipes", "export", "tests") <= names
    assert {"pyproject.toml", "README.md", "constraints.txt"} <= names


def test_from_a_wheel_the_folders_are_found(built, tmp_path):
    """In an environment of its own, beside the packages that are installed here, with the clone out of sight."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import compress_aug, sys; from compress_aug.folders import shipped\n"
        "from compress_aug.recipe import recipe_names\n"
        "from importlib.machinery import PathFinder\n"
        "beside = [PathFinder.find_spec(name, [sys.path[1]]) for name in ('recipes', 'export')]\n"
        "print(compress_aug.__file__, shipped('export') / 'bench.py', len(recipe_names()), *beside)"
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
