"""Training: recipes, the trainer, `fit`, run folders, several processes."""
