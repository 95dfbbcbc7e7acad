"""Numbers, and facts about code and devices, written the same way in every report."""

from __future__ import annotations

from jepa.report.tables import NONE
from jepa.results import Code, Device, Interval, Ratio

UNCOUNTED = "not counted"
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def clean(text: str) -> str:
    """One line of printable characters: white space becomes single spaces, control characters go."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """So many decimals, with thousands separators; `sign` "+" also writes a plus."""
    if value is None:
        return NONE
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def quality(value: float | None) -> str:
    """A CIDEr-D score, or RankMe: two decimals."""
    return fixed(value, 2)


def factor(value: float | None) -> str:
    """A ratio: two decimals and a multiplication sign."""
    return NONE if value is None else f"{fixed(value, 2)}×"


def fraction(value: float | None) -> str:
    """A score between 0 and 1: three decimals, or two significant digits below 0.01."""
    return f"{value:.2g}" if value is not None and 0 < value < 0.01 else fixed(value, 3)


def seconds(value: float | None) -> str:
    """A time in seconds: two decimals, one from 100 s on."""
    return fixed(value, 1 if value is not None and value >= 100 else 2)


def significant(value: float | None) -> str:
    """Three significant digits, whole numbers from 100 on."""
    if value is None:
        return NONE
    return fixed(value, 0) if abs(value) >= 100 else f"{value:.3g}".replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def interval(low: float, high: float, digits: int = 2, sign: str = "") -> str:
    return f"{fixed(low, digits, sign)} to {fixed(high, digits, sign)}"


def with_interval(found: Interval, digits: int = 2, sign: str = "", scale: float = 1.0) -> str:
    """A value, its interval in brackets."""
    ends = interval(scale * found.low, scale * found.high, digits, sign)
    return f"{fixed(scale * found.value, digits, sign)} ({ends})"


def difference(found: Interval | float | None) -> str:
    """A difference of qualities with its sign, and its interval where there is one."""
    return with_interval(found, sign="+") if isinstance(found, Interval) else fixed(found, 2, "+")


def bounds(ratio: Ratio) -> str:
    """The interval of a ratio; without an upper end where the divisor may be nothing."""
    return f"from {fixed(ratio.low, 2)}" if ratio.high is None else interval(ratio.low, ratio.high)


def saving(ratio: Ratio | None) -> str:
    """A saving in decodes with its interval, or words where the policy decodes nothing."""
    return "decodes nothing" if ratio is None else f"{factor(ratio.value)} ({bounds(ratio)})"


def prefix(largest: float) -> tuple[float, str]:
    """The factor and the SI prefix of a unit in which `largest` is a handy number."""
    return next((pair for pair in _PREFIXES if largest >= pair[0]), _PREFIXES[-1])


def code_text(code: Code) -> str:
    """The version and the commit that figures come from."""
    state = {True: ", with uncommitted changes", False: "", None: ", state of the tree unknown"}
    return f"version {code.version}, commit {code.commit or 'unknown'}{state[code.dirty]}"


def device_text(device: Device) -> str:
    """The device that figures were measured on."""
    return f"{device.type}, {device.name}, {device.threads} threads"


def libraries_text(libraries: dict[str, str]) -> str:
    """Names and versions of libraries."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())
