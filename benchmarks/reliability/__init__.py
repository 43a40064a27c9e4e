"""The reliability matrix: runs that are killed, damaged, starved and lied to, and what must be true afterwards."""
