"""Scripts that produce every figure in the docs."""
