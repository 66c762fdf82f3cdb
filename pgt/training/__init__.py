"""Trains and evaluates a run: config in, run folder out."""
