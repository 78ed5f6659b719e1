"""The build hook: compiles the kernels of compress_aug/native, or leaves them out and says why."""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "compress_aug/native"
LIBRARY = "compress_aug/native/kernels.so"

# The same bytes on every machine: no fused multiply-add, no reordered sums. Without trapping comparisons of floats
# can be vectorised; it changes no value.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden")

# What each level may use beyond the oldest processor; native/levels.c asks for the same when it chooses.
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi", "-mprefer-vector-width=512")
LEVELS = {
    "x86_64": {
        "avx2": ("-mavx2",),
        "avx512": ("-mavx2", *AVX512),
        "avx512_bf16": ("-mavx2", *AVX512, "-mavx512bf16"),
    }
}


class NoLibrary(Exception):
    """Why there are no kernels."""


class KernelsHook(BuildHookInterface):
    """A wheel gets the library inside and is one for this platform; an editable install gets it beside the sources."""

    def initialize(self, version, build_data):
        """Called by hatchling before it packs; version is "standard" or "editable"."""
        self.folder = Path(tempfile.mkdtemp())
        editable, in_tree = version == "editable", Path(self.root, LIBRARY)
        try:
            if editable:
                in_tree.unlink(missing_ok=True)  # what stays if nothing can be built now may fit no more
            library = compiled(Path(self.root, SOURCES), self.folder)
            if editable:
                placed(library, in_tree)
        except (NoLibrary, OSError) as reason:
            self.app.display_warning(f"no compiled kernels, plain torch will do their work: {reason}")
            return
        if not editable:
            build_data["force_include"][str(library)] = LIBRARY
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version, build_data, artifact_path):
        """Called by hatchling after it has packed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def placed(library, target):
    """Copy it whole or not at all: somebody may be about to load it."""
    part = target.with_suffix(".part.so")
    shutil.copy(library, part)
    part.replace(target)


def platform_tag():
    """The plain name of this platform; manylinux would promise more than anybody has checked."""
    from packaging.tags import platform_tags

    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


def compiler():
    """The command of the C compiler: $CC, or the first of the usual names that is there."""
    if os.environ.get("COMPRESS_AUG_NATIVE") == "0":
        raise NoLibrary("COMPRESS_AUG_NATIVE is 0")
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise NoLibrary("there is no C compiler (cc, gcc or clang)")


def compiled(sources, folder):
    """Compile every C file of `sources` once for each level, all at the same time, and link them in `folder`.

    Returns the library. A level that the compiler does not know is left out; NoLibrary if even the first fails.
    """
    command = [*compiler(), *FLAGS]
    levels = {"baseline": (), **LEVELS.get(platform.machine(), {})}
    kernels = sorted(path for path in sources.glob("*.c") if path.name != "levels.c")
    running = {
        level: [started([*command, *flags, f"-DLEVEL={level}"], path, folder / level) for path in kernels]
        for level, flags in levels.items()
    }
    failures = {
        level: [said for process in running[level] if (said := finished(process))] for level in levels
    }
    if failures["baseline"]:
        raise NoLibrary(failures["baseline"][0])
    built = [level for level in levels if not failures[level]]
    finished_well(
        started([*command, *(f"-DWITH_{level}" for level in built)], sources / "levels.c", folder / "own")
    )
    library = folder / "kernels.so"
    objects = [str(path) for level in (*built, "own") for path in sorted((folder / level).glob("*.o"))]
    finished_well(process([*command, "-shared", *objects, "-o", str(library)]))
    return library


def started(command, source, folder):
    """The compiler at work on one file; its object goes into the folder."""
    folder.mkdir(exist_ok=True)
    return process([*command, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])


def process(command):
    """A command that runs while we go on."""
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise NoLibrary(f"{command[0]} cannot be run ({error})") from None


def finished(running):
    """Wait for it. Returns what it complained about if it failed, in one line, or nothing."""
    said = running.communicate()[1].strip().splitlines()
    errors = [line for line in said if "error" in line] or said or ["it failed without a word"]
    return f"{running.args[0]}: {errors[0]}" if running.returncode else ""


def finished_well(running):
    """Wait for it; NoLibrary if it failed."""
    if complaint := finished(running):
        raise NoLibrary(complaint)
