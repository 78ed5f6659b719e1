"""Whether the runs of a study show what the paper claims: one honest sentence for each claim, with its numbers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress_aug.study.spread import Read, accuracy_at, differences, measured, newest, values
from compress_aug.study.sweeps import magnitude_word, rank, swept
from compress_aug.study.words import Claim, RunResult, StudyFile, Variant

Finding = Literal["shown", "opposite", "noise", "one seed", "not run"]

RULE = (
    "A claim compares accuracies of two variants seed by seed. It is shown if the mean of the differences is more "
    "than two standard errors above 0 and no seed says otherwise, and the opposite is shown if it is as far below; "
    "else the difference is within the noise. The standard error is the larger of two: that of the mean over the "
    "seeds, and that which so few test images leave. A claim against several variants is shown only if it is shown "
    "against each. That the best magnitude falls is shown if it does for every seed and on their mean curve. One "
    "seed gives no judgement."
)
"""How claims are judged, for the page of results; the reasons are told at `compared`."""

_SAID: dict[Finding, str] = {
    "shown": "shown",
    "opposite": "the opposite is shown",
    "noise": "within the noise",
    "one seed": "one seed: no judgement",
    "not run": "not judged",
}


@dataclass(frozen=True)
class Comparison:
    """One variant against another: what was found, and in which words.

    mean, error: of the differences in accuracy, shares; None where there is nothing to tell
    images:      how many test images there are, if the error is the noise that they leave, not that of the seeds
    """

    finding: Finding
    seeds: int = 0
    mean: float | None = None
    error: float | None = None
    images: int | None = None


def judged(file: StudyFile, runs: Sequence[RunResult]) -> list[str]:
    """A sentence for each claim of the study, in their order. runs: of one preset."""
    said = [_falls(file, runs) if claim.falls else _better(file, runs, claim) for claim in file.claims]
    return [f"{claim.say.rstrip('. ')}: {words}." for claim, words in zip(file.claims, said, strict=True)]


def compared(
    runs: Sequence[RunResult], better: str, than: str, at: float | None = None, margin: float = 0.0
) -> Comparison:
    """Whether the accuracy of one variant is above that of another.

    at:     a sparsity, the end of the run by default
    margin: a share by which it may be below and still counts as above

    The differences are paired by seed: runs of a seed share first weights and order of images, so that much of what
    a seed does cancels. Two or three seeds know their own noise badly: of two variants that do not differ at all, two
    seeds would show one to be better in 15 of 100 studies, three seeds in 9. Hence a floor, the noise of the test
    images: with n images, S seeds and accuracies p and q,

        sqrt((p (1 - p) + q (1 - q)) / n) / sqrt(S).

    Both variants are tested on the same images and mostly agree on which are hard: that makes the noise of a
    difference smaller than this. But every seed is tested on the same images too: dividing by sqrt(S) makes it too
    small. Let r be the correlation, over the images, of the two variants' chances to be right: the floor is too high
    where r > 1 - 1 / S (0.67 for three seeds), and too low below. Variants of one net should lie above it, so for
    few seeds we err on the careful side. It is not added to the noise of the seeds, the larger one counts: what an
    image does to single runs is in both.

    Where the runs do not tell how many test images there were, there is no floor.
    """

    def read(run: RunResult) -> float | None:
        return measured(run, "accuracy") if at is None else accuracy_at(run, at)

    ours, other = values(runs, better, read), values(runs, than, read)
    found = list(differences(ours, other).values())
    if not found:
        return Comparison("not run")
    mean = statistics.mean(found)
    if len(found) == 1:
        return Comparison("one seed", 1, mean)
    seeds = [seed for seed in ours if seed in other]
    of_seeds = statistics.stdev(found) / math.sqrt(len(found))
    images, of_images = _noise_of_images(runs, (better, than), read, seeds)
    error = max(of_seeds, of_images)
    finding: Finding = "noise"
    if mean + margin > 2 * error and min(found) + margin > 0:
        finding = "shown"
    elif mean + margin < -2 * error and max(found) + margin < 0:
        finding = "opposite"
    return Comparison(finding, len(found), mean, error, images if of_images > of_seeds else None)


def _noise_of_images(
    runs: Sequence[RunResult], variants: tuple[str, str], read: Read, seeds: Sequence[int]
) -> tuple[int | None, float]:
    """How many test images there are, and the standard error of a difference that they leave; 0 if unknown."""
    used = [newest(runs, variant)[seed] for variant in variants for seed in seeds]
    counts = [count for run in used if isinstance(count := run.data.get("test"), int) and count > 0]
    if not counts:
        return None, 0.0
    images = min(counts)
    shares = [statistics.mean(values(used, variant, read).values()) for variant in variants]
    variance = sum(share * (1 - share) for share in shares) / images
    return images, math.sqrt(variance / len(seeds))


def _better(file: StudyFile, runs: Sequence[RunResult], claim: Claim) -> str:
    assert claim.better is not None
    left_out = [name for name in (claim.better, *claim.than) if name not in shown(file, runs)]
    asked = [name for name in claim.than if name not in left_out]
    if claim.better in left_out or not asked:
        return "not asked by this preset"
    margin = claim.margin / 100
    against = {than: compared(runs, claim.better, than, claim.at, margin) for than in asked}
    run = {than: one for than, one in against.items() if one.finding != "not run"}
    words = [f"{_numbers(one)} against {title(file, than)}" for than, one in run.items()]
    bases = [_basis(one) for one in run.values()]
    if len(set(bases)) == 1:
        words.append(bases[0])
    else:
        words = [f"{said}, {basis}" for said, basis in zip(words, bases, strict=True)]
    missing = [name for name in (claim.better, *asked) if not newest(runs, name)]
    if missing:
        words.append(f"not run: {', '.join(title(file, name) for name in missing)}")
    # Both ran, yet never with the same seed, or never at this sparsity.
    apart = [than for than in against if than not in run and not {than, claim.better} & set(missing)]
    if apart:
        where = "" if claim.at is None else f" at {100 * claim.at:g} % zeros"
        words.append(f"no common seed{where}: {', '.join(title(file, name) for name in apart)}")
    if left_out:
        words.append(f"left out by this preset: {', '.join(title(file, name) for name in left_out)}")
    return f"{_SAID[_whole([one.finding for one in against.values()])]} ({'; '.join(words)})"


def _whole(findings: Sequence[Finding]) -> Finding:
    """What all comparisons say together: the worst of them."""
    order: tuple[Finding, ...] = ("opposite", "noise", "one seed", "not run", "shown")
    return next(finding for finding in order if finding in findings)


def _numbers(one: Comparison) -> str:
    assert one.mean is not None
    error = "" if one.error is None else f" ± {100 * one.error:.2f}"
    return f"{100 * one.mean:+.2f}{error} points"


def _basis(one: Comparison) -> str:
    """What a comparison rests on."""
    seeds = f"{one.seeds} seed{'s' * (one.seeds != 1)}"
    return seeds if one.images is None else f"{seeds}, ± of {one.images:,} test images"


def shown(file: StudyFile, runs: Sequence[RunResult]) -> dict[str, Variant]:
    """The variants that belong into a table of these runs: those of their preset, and whatever was run."""
    ran = {run.variant for run in runs}
    presets = [file.presets.get(run.preset) for run in runs]
    only = next((preset.only for preset in presets if preset is not None), None)
    return {
        name: variant
        for name, variant in file.variants.items()
        if only is None or name in only or name in ran
    }


def title(file: StudyFile, name: str) -> str:
    """What a variant is called in tables and sentences."""
    variant = file.variants.get(name)
    return name if variant is None or variant.title is None else " ".join(variant.title.split())


def _falls(file: StudyFile, runs: Sequence[RunResult]) -> str:
    """The magnitude at the largest sparsity against that at the smallest: of each seed, and of the mean curve."""
    falls = {name: _fall(runs, name) for name in file.variants}
    found = {name: one for name, one in falls.items() if one[0] != "not run"}
    if not found:
        return f"{_SAID['not run']} (not run: a sweep of two sparsities)"
    words = [f"{title(file, name)}: {said}" if len(found) > 1 else said for name, (_, said) in found.items()]
    return f"{_SAID[_whole([finding for finding, _ in found.values()])]} ({'; '.join(words)})"


def _fall(runs: Sequence[RunResult], variant: str) -> tuple[Finding, str]:
    found = swept(runs, variant)
    if len(found) < 2:
        return "not run", ""
    small, large = found[0], found[-1]
    pairs = [(small.optimal[seed], large.optimal[seed]) for seed in small.optimal if seed in large.optimal]
    pairs_and_mean = [*pairs, (small.summary.optimal, large.summary.optimal)]
    at = [
        f"{magnitude_word(one.summary.optimal)} at {100 * one.summary.sparsity:.3g} % zeros"
        for one in (small, large)
    ]
    said = f"best magnitude {at[0]}, {at[1]}"
    if len(pairs) < 2:
        return "one seed", said
    by_seed = ", ".join(f"{magnitude_word(before)} to {magnitude_word(after)}" for before, after in pairs)
    said = f"{said} over {len(pairs)} seeds; by seed {by_seed}"
    if all(rank(after) < rank(before) for before, after in pairs_and_mean):
        return "shown", said
    if all(rank(after) > rank(before) for before, after in pairs_and_mean):
        return "opposite", said
    return "noise", said
