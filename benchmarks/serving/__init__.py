"""What the layer between client and engine costs: this service and its peers, on one machine, in one run.

Every system serves the same tiny model on the same engine with the same settings, so that what differs is the layer.
The ceiling is the engine itself; the reference is `vllm serve`, one HTTP process in front of one engine. Systems take
turns cell by cell (A B C A B C …), and every ratio is to the reference in the same block and round.

Run it with `make bench`, or the core of it with `make bench-quick`; `python -m benchmarks.serving --help` teaches.
"""
