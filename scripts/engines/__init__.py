"""Training, refinement and what follows: everything that runs."""
