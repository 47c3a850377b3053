"""Measures of translated pictures, one file each: pure functions from arrays to numbers."""
