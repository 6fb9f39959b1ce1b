"""The typed experiment file (`experiment`), and published experiments as such files (`presets`)."""
