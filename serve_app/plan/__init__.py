"""`serve-app plan`: says before a deploy whether a Serve config file can work on given nodes, and what to change.

Arithmetic only: reads the file, the checkpoints' headers and the nodes, and starts nothing. Imports no Ray and no
torch of its own; vLLM where a model gives arguments to it and it is installed, because only vLLM knows them.
"""
