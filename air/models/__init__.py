"""The generative models and their parts: guides, networks, the spatial transformer, distributions."""
