"""The devices that a model is made for: one YAML file each, in export/targets or the user's own."""

import importlib.util
import json
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from compress_aug.errors import MissingPart, RecipeError, nearest
from compress_aug.folders import shipped
from compress_aug.reading import ended, read_yaml, sentences

Runtime = Literal["onnxruntime", "openvino"]

# The version that has INT4; a later one has INT2, which OpenVINO 2026.4 refuses.
_OPENVINO_OPSET = 21


def _own_saturation(value: Any) -> Any:
    return _this_processor_saturates() if value == "auto" else value


class Target(BaseModel):
    """A device, as far as compression depends on it. Each key's meaning is its description.

    >>> Target.model_fields["round_to"].description
    'channel counts are kept in multiples of this: kernels work on whole vectors'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, description="what reports call it")
    description: str = Field(description="one line for people")
    runtime: Runtime = Field(
        description="what runs the file: its classes are compared with the model's there, and there it is timed"
    )
    form: Literal["onnxruntime", "tensorrt"] = Field(
        "onnxruntime",
        description="which runtime's integer kernels the file is written for; tensorrt: signed symmetric integers "
        "between QuantizeLinear and DequantizeLinear, nothing packed, biases in float",
    )
    opset: int = Field(
        13,
        ge=13,
        description="version of the ONNX operators in the file: 13 loads everywhere; 21 has INT4 tensors for weights "
        "of 4 bits, 25 INT2 tensors for those of 2 bits too",
    )
    threads: int = Field(ge=1, description="that one layer may use when the file is timed")
    round_to: int = Field(
        ge=1, description="channel counts are kept in multiples of this: kernels work on whole vectors"
    )
    int8_saturates: Annotated[bool, BeforeValidator(_own_saturation)] = Field(
        description="whether the sum of two products of 8-bit integers may overflow 16 bits, as on x86 without VNNI: "
        "weights then get 7 bits; auto: as on this machine"
    )
    proxy: bool = Field(
        description="whether latency measured on this machine only stands in for the device's"
    )
    itself: str | None = Field(
        None,
        min_length=1,
        description="how the device's own firmware calls it (/proc/device-tree/model begins so): there, proxy is false",
    )

    @field_validator("form", "opset")
    @classmethod
    def _for_runtime(cls, given: Any, info: ValidationInfo) -> Any:
        if info.data.get("runtime") == "openvino":
            if given == "tensorrt":
                raise ValueError(
                    "expected onnxruntime, whose form OpenVINO has integer kernels for, found tensorrt"
                )
            if info.field_name == "opset" and given > _OPENVINO_OPSET:
                raise ValueError(
                    f"expected at most {_OPENVINO_OPSET}, since OpenVINO reads no INT2 tensors, found {given}"
                )
        return given

    @property
    def signed_only(self) -> bool:
        """Whether its kernels take signed integers only, so that what never is negative has 7 bits.

        >>> load_target("jetson").signed_only
        True
        """
        return self.form == "tensorrt"

    def as_yaml(self) -> str:
        """The file that `load_target` reads, with every key explained.

        >>> print(load_target("generic_avx2").as_yaml().splitlines()[1])
        name: "generic_avx2"
        """
        lines = []
        for key, value in self.model_dump(exclude_none=True).items():
            lines.append(f"# {type(self).model_fields[key].description}")
            # JSON is YAML.
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def load_target(name_or_path: str | Path) -> Target:
    """A shipped device by its name, or the user's own by the path of its YAML file.

    Raises RecipeError: for a name that is not known, with the nearest one; for a file that is wrong, with one
    sentence for each mistake that says the line. MissingPart if its runtime is not installed.

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
        raise RecipeError(
            [f"{document.where(key)}: {ended(sentence)}" for key, sentence in mistakes]
        ) from None
    require_runtime(target.runtime)
    if target.itself is not None and _firmware_name().startswith(target.itself):
        return target.model_copy(update={"proxy": False})
    return target


def require_runtime(name: Runtime) -> None:
    """Raises MissingPart if this Python cannot import it.

    >>> require_runtime("onnxruntime")
    """
    if importlib.util.find_spec(name) is None:
        raise MissingPart(
            f'runtime: {name} needs {name}, which is not installed: pip install "compress-aug[{name}]"'
        )


def target_names() -> list[str]:
    """The devices that ship, sorted.

    >>> target_names()
    ['generic_avx2', 'host_cpu', 'jetson', 'raspberry_pi_4', 'raspberry_pi_5']
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
