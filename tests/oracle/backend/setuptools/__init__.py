"""Stands where setuptools would, for as long as pip asks a source distribution for its name and version."""
