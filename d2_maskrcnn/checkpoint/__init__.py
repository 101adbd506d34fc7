"""Weight files: safe reading, names of other programs, reports, whole-or-nothing writing."""
