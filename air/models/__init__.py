"""AIR and its parts: guides, networks, the spatial transformer, distributions; export, and Pyro's checkpoints."""
