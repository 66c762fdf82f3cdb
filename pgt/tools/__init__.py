"""Instruments beside training: benchmarks and studies."""
