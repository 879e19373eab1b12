"""Every seed's own experiment again, beside what its source claims and what edgepack does by default."""
