"""All families, in the order of the table."""

from __future__ import annotations

from benchmarks.reliability import resumes

FAMILIES = (*resumes.FAMILIES,)
