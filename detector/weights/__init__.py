"""Importers of weights, one file per source format."""
