"""Remakes every table and figure; speed benchmarks."""
