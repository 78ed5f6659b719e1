"""The devices that a model is made for: one YAML file each, in export/targets or the user's own."""

import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compress_aug.errors import RecipeError, nearest
from compress_aug.folders import shipped
from compress_aug.reading import read_yaml, sentences


def _own_saturation(value: Any) -> Any:
    return _this_processor_saturates() if value == "auto" else value


class Target(BaseModel):
    """A device, as far as compression depends on it.

    threads:        that one layer may use when the file is timed
    round_to:       channel counts are kept in multiples of this, because kernels work on whole vectors
    int8_saturates: whether adding two products of 8-bit numbers may overflow 16 bits (as on x86 without
                    VNNI); weights then get 7 bits. The file may say `auto`: as on this machine
    proxy:          whether latency measured on this machine only stands in for the device's
    itself:         how the device's own firmware calls it; on such a machine `proxy` is false
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1)
    description: str
    runtime: Literal["onnxruntime"]
    threads: int = Field(ge=1)
    round_to: int = Field(ge=1)
    int8_saturates: Annotated[bool, BeforeValidator(_own_saturation)]
    proxy: bool
    itself: str | None = Field(None, min_length=1)


def load_target(name_or_path: str | Path) -> Target:
    """A shipped device by its name, or the user's own by the path of its YAML file.

    Raises RecipeError: for a name that is not known, with the nearest one; for a file that is wrong, with one
    sentence for each mistake that says the line.

    >>> load_target("host_cpu").round_to
    8
    """
    path = _shipped_files().get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise RecipeError(f"There is no file {path} that describes a target.")
        raise RecipeError(
            f'There is no target "{name_or_path}": {nearest(str(name_or_path), target_names())}'
        )
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise RecipeError(f"{path}: expected keys and values that describe a target.")
    try:
        target = Target.model_validate(document.data)
    except ValidationError as error:
        mistakes = sentences(error, Target)
        raise RecipeError([f"{document.where(key)}: {sentence}." for key, sentence in mistakes]) from None
    if target.itself is not None and _firmware_name().startswith(target.itself):
        return target.model_copy(update={"proxy": False})
    return target


def target_names() -> list[str]:
    """The devices that ship, sorted.

    >>> target_names()
    ['host_cpu', 'raspberry_pi_4']
    """
    return sorted(_shipped_files())


def _shipped_files() -> dict[str, Path]:
    return {path.stem: path for path in (shipped("export") / "targets").glob("*.yaml")}


def _firmware_name() -> str:
    """What a single-board computer calls itself, "" on other machines."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _this_processor_saturates() -> bool:
    """Whether this machine adds products of 8-bit numbers in 16 bits; True where an x86 does not tell."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return not {"avx_vnni", "avx512_vnni"} & set(told.split())
