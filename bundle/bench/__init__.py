"""Where every figure in the docs comes from."""
