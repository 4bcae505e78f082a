"""What pyproject.toml can't say: the shipped voices lie in `prompts/`, and travel as part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["csm", "csm.*"]), "csm.assets.prompts"],
    package_dir={"csm.assets.prompts": "prompts"},
)
