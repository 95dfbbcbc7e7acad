"""The packages: those found below jepa/, plus conf/ as jepa.conf. pyproject.toml cannot say both at once."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jepa", "jepa.*"]), "jepa.conf"])
