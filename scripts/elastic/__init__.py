"""Elastic registration across contrasts: a network that only ever saw synthetic images.

Nothing is imported here, so that the settings of this room stay free of torch.
"""
