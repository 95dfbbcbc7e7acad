"""Accelerators as a datasheet describes them, for estimates of what serving costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jepa.errors import InputError

# Bytes of a weight. MX4 is 4 bits and one 8-bit scale for each 32 (OCP Microscaling Formats 1.0, section 5.2).
FORMATS = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "mx4": 0.53125}


@dataclass(frozen=True)
class Hardware:
    """One chip, by its datasheet.

    Args:
        name: as its maker writes it.
        peaks: dense FLOP/s (no sparsity) by number format, a key of `FORMATS`.
        memory: bytes of high-bandwidth memory.
        bandwidth: bytes a second from that memory.
        watts: the most the module draws; None if its maker does not say.

    Raises:
        InputError: an unknown format, no format, or a figure that is not positive.
    """

    name: str
    peaks: Mapping[str, float]
    memory: float
    bandwidth: float
    watts: float | None

    def __post_init__(self) -> None:
        if not self.peaks:
            raise InputError("peaks must name at least one number format, got none")
        for name in self.peaks:
            number_format(name)
        for name, value in {
            "memory": self.memory,
            "bandwidth": self.bandwidth,
            "watts": self.watts,
            **self.peaks,
        }.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be > 0, got {value}")

    def peak(self, format: str) -> float:
        """Dense FLOP/s in a number format.

        Raises:
            InputError: the datasheet gives none.
        """
        if format not in self.peaks:
            raise InputError(
                f"format must be one that {self.name} computes in ({', '.join(self.peaks)}), got {format!r}"
            )
        return self.peaks[format]


def number_format(name: str) -> float:
    """Bytes of a number in the format `name`; raises InputError if it is none of `FORMATS`."""
    if name not in FORMATS:
        raise InputError(f"number format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
