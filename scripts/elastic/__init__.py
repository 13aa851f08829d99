"""Elastic registration across contrasts: a network that only ever saw synthetic images."""
