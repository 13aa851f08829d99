"""The learned atlas: its network, training, refinement, and the model that is published."""
