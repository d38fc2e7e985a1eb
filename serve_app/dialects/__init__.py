"""The HTTP dialects, a folder each: its routes, the bodies it reads, its answers and the shapes of those."""
