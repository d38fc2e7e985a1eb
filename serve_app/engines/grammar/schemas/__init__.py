"""JSON schemas that answers are held to: `kept.py` says which can be, and writes them as grammars know them."""
