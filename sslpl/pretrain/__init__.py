"""The command that learns starting weights for a backbone from images without labels."""
