"""Experiments: parameters in, one row of results out."""
