"""Many chat and image-captioning models behind one address, on Ray Serve."""

__version__ = "0.1.0"
