"""A plan and its factors become files, each format in its schemes."""
