"""All families, in the order of the table."""

from __future__ import annotations

from benchmarks.reliability import arithmetic, damage, elsewhere, readers, resumes, signals, writes

FAMILIES = (
    *resumes.FAMILIES,
    *writes.FAMILIES[:1],
    *signals.FAMILIES,
    *damage.FAMILIES,
    *writes.FAMILIES[1:],
    *arithmetic.FAMILIES[:2],
    *readers.FAMILIES,
    *elsewhere.FAMILIES,
    *arithmetic.FAMILIES[2:],
)
