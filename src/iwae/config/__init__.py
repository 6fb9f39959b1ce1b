"""The typed experiment file (`experiment`), published `presets` and fast `recipes`."""
