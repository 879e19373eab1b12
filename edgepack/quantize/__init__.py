"""Integer grids and the choice of basis that quantizes well."""
