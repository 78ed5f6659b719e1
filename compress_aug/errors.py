"""Every error that compress_aug raises, as one tree.

CompressAugError
├── UserError                 something the user can put right: the command line exits with 2
│   ├── RecipeError           the recipe (or an argument) is wrong; holds all problems of the file at once
│   ├── DataError             the data set is missing, empty, broken or does not fit
│   ├── ModelError            the model cannot be built, or does not fit the data
│   ├── RunFolderError        a run's folder or checkpoint is not what was asked for
│   ├── SurgeryError          a change to the model that cannot be made
│   │   ├── PruneError
│   │   ├── AttachError
│   │   └── QuantizeError
│   ├── StageError            a stage of the user's own failed
│   └── MissingPart           an optional package is not installed
└── WorkError                 the work itself failed: the command line exits with 1
    ├── TrainingError         the loss left the real numbers, ...
    ├── ExportError           the ONNX file could not be written or timed
    │   └── ParityError       the file does not compute what the model computes
    ├── BudgetMissed          everything was written, but a budget of the recipe was missed
    └── Interrupted           stopped by Ctrl-C; the run resumes
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


class CompressAugError(Exception):
    """The root: `except CompressAugError` catches whatever this package raises on purpose."""

    exit_code = 1


class UserError(CompressAugError):
    """Something the user can put right."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe is wrong. `problems` holds one sentence for each thing that is, in the order of the file.

    >>> print(RecipeError(["a.yaml, line 3: ...", "a.yaml, line 9: ..."]))
    a.yaml, line 3: ...
    a.yaml, line 9: ...
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """The data set is missing, empty, broken or does not fit."""


class ModelError(UserError):
    """The model cannot be built, or does not fit the data."""


class RunFolderError(UserError):
    """A run's folder or checkpoint is not what was asked for."""


class SurgeryError(UserError):
    """A change to the model that cannot be made."""


class PruneError(SurgeryError):
    """These weights or channels cannot be removed."""


class AttachError(SurgeryError):
    """No place was found for additional layers, or there is nothing to drop."""


class QuantizeError(SurgeryError):
    """This model, or this choice of bits, cannot be quantized."""


class StageError(UserError):
    """A stage of the user's own raised an error, or returned something else than a State."""


class MissingPart(UserError):
    """An optional package is not installed; the message names what to install."""


class WorkError(CompressAugError):
    """The work itself failed."""


class TrainingError(WorkError):
    """Training cannot go on: the loss is not a number any more."""


class ExportError(WorkError):
    """The ONNX file could not be written or timed."""


class ParityError(ExportError):
    """The file does not compute what the model computes."""


class BudgetMissed(WorkError):
    """Everything was written, but the file misses a budget.

    misses: one sentence for each;  folder: of the run, where everything lies, once it is known
    """

    def __init__(self, misses: Sequence[str]) -> None:
        self.misses = list(misses)
        self.folder: Path | None = None
        super().__init__("The budget was missed: " + "; ".join(self.misses) + ".")


class Interrupted(WorkError):
    """Stopped by the user; what was done so far is kept and the run resumes."""


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that names the known word nearest to a wrong one, or else all that are known.

    >>> nearest("magnitud", ["epochs", "magnitude"])
    'did you mean "magnitude"?'
    >>> nearest("x", ["cosine", "step"])
    'known are: cosine, step'
    """
    close = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f"known are: {', '.join(known)}"
