"""Read and check COCO JSON files: one reader and one schema for checks, loaders, evaluators and the inspection."""
