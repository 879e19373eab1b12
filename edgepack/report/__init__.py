"""Comparisons: rows of figures, and their renderings as text, markdown, CSV and JSON."""
