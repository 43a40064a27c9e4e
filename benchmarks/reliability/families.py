"""All families, in the order of the table."""

from __future__ import annotations

from benchmarks.reliability import resumes, signals, writes

FAMILIES = (*resumes.FAMILIES, *writes.FAMILIES[:1], *signals.FAMILIES, *writes.FAMILIES[1:])
