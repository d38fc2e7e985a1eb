"""What the service counts, and how it gets to `/metrics`: registry → snapshot → reporter → sidecar → HTTP.

`registry.py` runs in every ingress and replica process, `reporter.py` sends its `snapshot.py` each second,
`sidecar.py` merges them in one process of its own. Nothing here knows Ray.
"""
