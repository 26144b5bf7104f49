"""Builds ``depthg._C`` and installs ``kernels/`` as the package ``depthg.kernels``."""

from setuptools import setup

setup(
    packages=["depthg", "depthg.data", "depthg.conf", "depthg.kernels"],
    package_dir={"depthg": "depthg", "depthg.kernels": "kernels"},
    package_data={"depthg.conf": ["*.yaml", "*/*.yaml"]},
)
