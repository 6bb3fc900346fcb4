"""Pure tensor functions. No registry, no host package."""
