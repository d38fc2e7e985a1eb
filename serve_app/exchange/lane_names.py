"""What HAProxy and our processes tell each other, by header and path. Imports nothing."""

LANES_PATH = "/-/lanes"
SECRET_HEADER = "x-serve-app-lanes"  # of whoever asks for the lanes: HAProxy takes it out of a client's request
DRAWN_HEADER = "x-serve-app-drawn"  # the name that the client gave, and the model that was drawn for it
