"""The keys of our own schedule files and what may stand there, each mistake in words that a person can act on."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from compress_aug import schedule as magnitudes
from compress_aug.errors import RecipeError, nearest
from compress_aug.policies.provenance import plain_mapping
from compress_aug.policies.schedule import MAX_EPOCHS
from compress_aug.policies.space import MAX_MAGNITUDE, MAX_PROBABILITY, OPERATIONS
from compress_aug.schedule import AnySchedule, Schedule


class Keys(BaseModel):
    """Keys and values of which none may be unknown."""

    # Strict: `magnitude: true` and `epochs: "3"` are mistakes, not numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EntryKeys(Keys):
    """One operation: probability a multiple of 0.1 in 0..1, magnitude 0..9."""

    op: str
    probability: float
    magnitude: int = Field(ge=0, le=MAX_MAGNITUDE)

    @field_validator("op")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in OPERATIONS:
            raise ValueError(f'there is no operation "{given}": {nearest(given, OPERATIONS)}')
        return given

    @field_validator("probability")
    @classmethod
    def _tenths(cls, given: float) -> float:
        tenths = given * MAX_PROBABILITY
        # 0.3 * 10 is not exactly 3.
        if not 0 <= tenths <= MAX_PROBABILITY or abs(tenths - round(tenths)) > 1e-9:
            raise ValueError(f"expected a multiple of 0.1 in 0..1, found {given!r}")
        return given


class SegmentKeys(Keys):
    """A policy and its epochs. The n-th mention of an operation is its n-th copy."""

    epochs: int = Field(ge=0)
    ops: list[EntryKeys]


class FileKeys(Keys):
    """What every schedule file has."""

    format: int
    space: str
    provenance: dict[str, Any] = {}

    @field_validator("provenance")
    @classmethod
    def _plain(cls, given: dict[str, Any]) -> dict[str, Any]:
        try:
            return plain_mapping(given)
        except RecipeError as error:
            raise ValueError(str(error).removeprefix("provenance: ")) from None


class PolicyFile(FileKeys):
    """A schedule of learned policies."""

    epochs: int = Field(ge=1, le=MAX_EPOCHS)
    segments: list[SegmentKeys] = Field(min_length=1)


class MagnitudeFile(FileKeys):
    """A schedule of RandAugment's magnitude, 0..30."""

    magnitude: Schedule

    @field_validator("magnitude")
    @classmethod
    def _in_range(cls, given: AnySchedule) -> AnySchedule:
        low, high = magnitudes.extremes(given)
        if low < 0 or high > magnitudes.MAX_MAGNITUDE:
            wrong = high if high > magnitudes.MAX_MAGNITUDE else low
            raise ValueError(f"expected a magnitude in 0..{magnitudes.MAX_MAGNITUDE}, found {wrong:g}")
        if isinstance(given, float) and given != int(given):
            raise ValueError(f"expected a whole number for a constant magnitude, found {given:g}")
        return given
