"""Write and show results."""
