"""What is sent of a snapshot: its bytes, in the form that a client asks for."""
