"""Model files for slow links: a `.tar.xz` with the hashes of what is in it, and back."""
