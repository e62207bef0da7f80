"""Training with several processes: ranks, the server that writes their completions, and what SLURM tells of both."""
