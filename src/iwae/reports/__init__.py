"""For readers: figures, the page that compares runs, the model card, export and the hub."""
