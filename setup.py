"""The packages of a wheel: those of raysweep/, and jobs/ and search_spaces/ as data. The rest is in pyproject.toml."""

from setuptools import find_packages, setup

# pyproject.toml can name folders or find them, not both: found, no new room of raysweep/ can be forgotten.
SHIPPED = {"raysweep.jobs": "jobs", "raysweep.search_spaces": "search_spaces"}

setup(packages=[*find_packages(include=["raysweep", "raysweep.*"]), *SHIPPED], package_dir=SHIPPED)
