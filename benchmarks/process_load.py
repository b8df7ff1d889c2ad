"""The cost of a process, for benchmarks that run from this folder."""

from sam3dnet.comparison.process_load import Load, process_tree, run_measured

__all__ = ["Load", "process_tree", "run_measured"]
