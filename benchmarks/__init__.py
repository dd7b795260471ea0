"""The paper's eleven benchmarks."""
