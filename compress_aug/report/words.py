"""Numbers as people read them: one spelling for the terminal and the page. Null is always "-"."""

import math
from collections.abc import Mapping, Sequence

ABSENT = "-"

_THOUSANDS = ((1, ""), (10**3, "k"), (10**6, "M"), (10**9, "G"), (10**12, "T"))


def plain(text: str) -> str:
    """The text without what a terminal obeys: control, escape and direction characters become U+FFFD.

    >>> plain("a\\x1b[31mb") == "a\\ufffd[31mb"
    True
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def percent(share: float | None, digits: int = 2) -> str:
    """A share in [0, 1] in percent. Never rounded up to all, nor down to nothing: 0.99999 is not "100.00 %".

    >>> percent(0.9312), percent(0.6, 1), percent(0.99999), percent(1.0), percent(0.00001)
    ('93.12 %', '60.0 %', '> 99.99 %', '100.00 %', '< 0.01 %')
    """
    if share is None or not math.isfinite(share):
        return _not_finite(share)
    step = 10.0**-digits
    if share < 1 and round(100 * share, digits) >= 100:
        return f"> {100 - step:.{digits}f} %"
    if share > 0 and round(100 * share, digits) <= 0:
        return f"< {step:.{digits}f} %"
    return f"{100 * share:.{digits}f} %"


def exact(number: int | None) -> str:
    """A whole number with its thousands apart.

    >>> exact(272474)
    '272,474'
    """
    return ABSENT if number is None else f"{number:,}"


def short(number: int | None, unit: str = "") -> str:
    """Three digits of a whole number, in thousands, millions, ... (powers of 1000).

    >>> short(272474), short(11173962), short(999), short(321715, "B"), short(999_950)
    ('272 k', '11.2 M', '999', '322 kB', '1.00 M')
    """
    if number is None:
        return ABSENT
    # 999.5 k would be printed as "1000 k": it belongs to the next unit.
    factor, letter = next(
        ((factor, letter) for factor, letter in _THOUSANDS if abs(number) < 999.5 * factor), _THOUSANDS[-1]
    )
    digits = str(number) if factor == 1 else _three_digits(number / factor)
    return f"{digits} {letter}{unit}".rstrip()


def size(bytes_: int | None) -> str:
    """A file's size; a kB is 1000 bytes.

    >>> size(321715), size(1099000)
    ('322 kB', '1.10 MB')
    """
    return short(bytes_, "B")


def megabytes(value: float | None) -> str:
    """Memory in 10^6 bytes, with three digits.

    >>> megabytes(68.75), megabytes(None)
    ('68.8 MB', '-')
    """
    return f"{_three_digits(value)} MB" if value is not None and math.isfinite(value) else _not_finite(value)


def milliseconds(value: float | None) -> str:
    """A latency, with three digits.

    >>> milliseconds(0.3), milliseconds(12.345), milliseconds(1234.5)
    ('0.300 ms', '12.3 ms', '1234 ms')
    """
    return f"{_three_digits(value)} ms" if value is not None and math.isfinite(value) else _not_finite(value)


def duration(seconds: float | None) -> str:
    """A time span, with three digits.

    >>> duration(0.04), duration(12.34), duration(125), duration(7980)
    ('0.040 s', '12.3 s', '2.08 min', '2.22 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return _not_finite(seconds)
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    if seconds < 3597:  # what would be printed as "60.0 min" is an hour
        return f"{_three_digits(seconds / 60)} min"
    return f"{_three_digits(seconds / 3600)} h"


def loss(value: float | None) -> str:
    """A training loss, with three decimals.

    >>> loss(0.21), loss(float("nan"))
    ('0.210', 'nan')
    """
    return f"{value:.3f}" if value is not None and math.isfinite(value) else _not_finite(value)


def difference(value: float | None) -> str:
    """A small difference between two outputs.

    >>> difference(0.0), difference(3.14e-6)
    ('0', '3.1e-06')
    """
    return _not_finite(value) if value is None else f"{value:.2g}"


def magnitude(first_and_last: Sequence[float | None] | None) -> str:
    """An augmentation magnitude (0..30) at the start and at the end of a stage.

    >>> magnitude([14.0, 14.0]), magnitude([14, 4]), magnitude([2, None])
    ('14', '14 to 4', '2 to none')
    >>> magnitude([None, None]), magnitude(None)
    ('none', '-')
    """
    if first_and_last is None:
        return ABSENT
    first, last = ("none" if value is None else f"{value:.3g}" for value in first_and_last)
    return first if first == last else f"{first} to {last}"


def strength(first_and_last: Sequence[float | None] | None, *, drawn: bool, policy: bool) -> str:
    """How strong the augmentation of a stage was: a magnitude, drawn magnitudes up to one, or a learned policy.

    >>> strength([30, 30], drawn=True, policy=False), strength([14, 4], drawn=True, policy=False)
    ('0..30', '0..14 to 4')
    >>> strength(None, drawn=False, policy=True)
    'policy'
    """
    if policy:
        return "policy"
    return f"{'0..' if drawn else ''}{magnitude(first_and_last)}"


def weight_bits(bits: Mapping[str, object] | None) -> str:
    """The mean width of the weights, in bits.

    >>> weight_bits({"weights": 4.127}), weight_bits({"weights": 32}), weight_bits(None)
    ('4.13', '32', '-')
    """
    value = (bits or {}).get("weights")
    return f"{value:.3g}" if isinstance(value, (int, float)) else ABSENT


def parameters(total: int | None, nonzero: int | None) -> str:
    """Parameters, and how many of them are not zero if some are.

    >>> parameters(272474, 108990), parameters(272474, 272474), parameters(272474, None)
    ('109 of 272 k', '272 k', '272 k')
    >>> parameters(1200000, 980000)
    '980 k of 1.20 M'
    """
    if nonzero is None or nonzero == total:
        return short(total)
    some, all_ = short(nonzero), short(total)
    unit = all_[-2:]
    return f"{some.removesuffix(unit) if unit.startswith(' ') else some} of {all_}"


def ratio(before: float | None, after: float | None, better: str, worse: str) -> str:
    """How many times smaller or faster `after` is than `before`, or how many times worse.

    >>> ratio(0.60, 0.30, "faster", "slower"), ratio(1.0, 1.25, "faster", "slower")
    ('2.00x faster', '1.25x slower')
    >>> ratio(1.0, 1.001, "faster", "slower"), ratio(None, 1.0, "faster", "slower")
    ('the same', '-')
    """
    if not before or not after or not math.isfinite(before) or not math.isfinite(after):
        return ABSENT
    times, word = (before / after, better) if before >= after else (after / before, worse)
    return "the same" if f"{times:.2f}" == "1.00" else f"{times:.2f}x {word}"


def points(before: float | None, after: float | None) -> str:
    """How an accuracy changed, in percentage points.

    >>> points(0.93, 0.91), points(0.91, 0.91)
    ('-2.00 points', 'the same')
    """
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return ABSENT
    change = f"{100 * (after - before):+.2f}"
    return "the same" if float(change) == 0 else f"{change} points"


def layers(integer: int | None, float_: int | None) -> str:
    """How many layers compute in integers and how many in float.

    >>> layers(22, 0)
    '22 integer, 0 float'
    """
    return f"{exact(integer)} integer, {exact(float_)} float"


def _three_digits(value: float) -> str:
    decimals = 3 if abs(value) < 0.9995 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def _not_finite(value: float | None) -> str:
    return ABSENT if value is None else str(value)
