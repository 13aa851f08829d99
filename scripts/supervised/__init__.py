"""Networks that learn displacements from pairs whose displacement is known."""
