"""Experiments: parameters in, one row of results out; and the trained networks that came of some."""
