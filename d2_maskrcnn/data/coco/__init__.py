"""Reading and validating COCO JSON files."""
