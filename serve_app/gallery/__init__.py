"""The gallery: images with their captions, failures and findings on one HTML page.

The command line makes it of a run's output, and the playground of what a visitor chose.
"""
