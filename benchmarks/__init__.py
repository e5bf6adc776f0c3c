"""Benchmarks of shmbatch beside its rivals and the machine's limits; see README.md."""
