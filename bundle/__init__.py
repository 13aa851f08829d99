"""The people's side of the bundle: ``python -m bundle <verb>``, the set-up, the docs' generators.

Thin over ``scripts`` and ``configs``; nothing there imports this package, and no configuration
names it.
"""
