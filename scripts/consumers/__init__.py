"""What is made of densities and published maps without a network."""
