"""A pack: a folder with model files, and the manifest that says what they are."""
