"""Small random checkpoints, written by the names and shapes of those who published the layouts, not by our reading of them."""
