"""What pyproject.toml can't say: the wheel keeps the bundle's folders in ``tract_atlas/root``."""

from setuptools import find_packages, setup

ROOT = "tract_atlas.root"
rooms = find_packages(include=["bundle*", "scripts*"], exclude=["bundle.bench*"])

setup(
    packages=["tract_atlas", ROOT, *(f"{ROOT}.{room}" for room in rooms)],
    package_dir={"tract_atlas": "bundle/installed/tract_atlas", ROOT: "."},
    # Read by the verbs: configs by all jobs; docs and LICENSE go into the archive of `pack`.
    package_data={
        ROOT: [
            "LICENSE",
            *(f"bundle/weights/**/*.{ending}" for ending in ("gz", "json", "pt")),
            *(f"configs/*.{ending}" for ending in ("conf", "json", "yaml")),
            "scripts/**/*.js",
            *(f"docs/**/*.{ending}" for ending in ("md", "png", "svg", "txt")),
        ]
    },
)
