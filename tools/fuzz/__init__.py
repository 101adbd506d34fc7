"""Give the program malformed inputs, and check that each is refused in one line or read with the right values."""
