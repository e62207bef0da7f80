"""What the answer of a completion is and whether it is right: one rule for rewards, own answers and benchmarks."""
