"""A configuration with a little of everything that the command line changes."""

from typing import Any


def config(**block: Any) -> dict[str, Any]:
    """A configuration, with further settings of its ``learned_atlas`` block."""
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "learned_atlas": {"optimizer": {"lr": 1e-3}, **block},
        "trainer": {"max_epochs": 5, "handlers": [{"name": "a"}, {"name": "b"}]},
        "losses": "$[1, 2]",
    }
