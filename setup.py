"""Packaging shim for tools that call setup.py; pyproject.toml is the single source of metadata."""

from setuptools import setup

setup()
