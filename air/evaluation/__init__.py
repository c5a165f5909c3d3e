"""How well a model counts, locates and explains held-out scenes, and pictures of what it found."""
