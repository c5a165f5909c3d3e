"""AIR for 3D scenes: objects on a table, and a fixed differentiable renderer instead of a decoder."""
