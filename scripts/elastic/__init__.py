"""Elastic registration across contrasts, by a network trained on synthetic images."""
