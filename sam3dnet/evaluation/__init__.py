"""How good label maps are: metrics, comparison of two results, clicks of a simulated user, and the report."""
